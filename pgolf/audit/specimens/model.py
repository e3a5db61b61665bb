"""The model on which specimens and legal methods are tried: two small layers with weights far from zero."""

import torch

from pgolf.audit.specimens.base import Specimen, SpecimenRecording
from pgolf.audit.stream import plain_vocabulary
from pgolf.audit.subject import InProcess
from pgolf.config.load import resolve
from pgolf.core.model.gpt import GPT

VOCABULARY = 64


def small_model(seed: int, presets: str = "tiny", *sets: str) -> GPT:
    """A model of V=64 whose distributions are neither flat nor sharp."""
    chosen = [f"model.vocab_size={VOCABULARY}", "model.model_dim=32", *sets]
    config = resolve(presets, chosen).config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 2:
                    weight.normal_(0, 0.4 if "embed" in name else weight.size(1) ** -0.5)
    return model.settle(torch.device("cpu")).eval()


def specimen_subject(specimen: type[Specimen], seed: int) -> InProcess:
    """A specimen on that model."""
    about = {"kind": "specimen", "name": specimen.__name__, "seed": seed}
    return InProcess(small_model(seed), specimen(), plain_vocabulary(VOCABULARY), about, SpecimenRecording)
