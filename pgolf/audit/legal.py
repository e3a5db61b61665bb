"""The legal methods, each as settings, small enough to audit in seconds."""

from typing import Any

from pgolf.audit.reduced import reduced
from pgolf.audit.specimens.model import VOCABULARY, small_model
from pgolf.audit.stream import plain_vocabulary
from pgolf.audit.subject import InProcess
from pgolf.config.load import resolve

TILT = ("eval.tilt=token", "eval.tilt.lowest=3", "eval.tilt.highest=5")
CACHE = ("eval.cache=exact", "eval.cache.lowest=2", "eval.cache.highest=3")
LORA = ("ttt.chunk_tokens=12", "ttt.rank=4", "ttt.lr=0.02")
LEGAL: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("eval", ("eval.method=plain",)),
    "sliding": ("eval", ("eval.method=sliding",)),
    "document": ("eval", ("eval.method=document",)),
    "overlap": ("eval", ("eval.method=overlap",)),
    "sliding, NTK": ("eval", ("eval.method=sliding", "eval.rope=ntk", "eval.rope.trained=32")),
    "sliding, YaRN": ("eval", ("eval.method=sliding", "eval.rope=yarn", "eval.rope.trained=32")),
    "sliding, slot adamw": ("eval", ("eval.method=sliding", "eval.slot=adamw", "eval.slot.lr=0.1")),
    "sliding, slot lbfgs": ("eval", ("eval.method=sliding", "eval.slot=lbfgs", "eval.slot.iterations=4")),
    "sliding, temperature": (
        "eval",
        ("eval.method=sliding", "eval.temperature=fixed", "eval.temperature.value=0.9"),
    ),
    "sliding, bias": ("eval", ("eval.method=sliding", "eval.bias=online")),
    "sliding, cache": ("eval", ("eval.method=sliding", *CACHE)),
    "sliding, mixer": ("eval", ("eval.method=sliding", "eval.mixer=hedge")),
    "sliding, tilt": ("eval", ("eval.method=sliding", *TILT)),
    "document, cache, tilt": ("eval", ("eval.method=document", *CACHE, *TILT)),
    "ttt chunk, sgd": ("ttt", ("ttt.method=chunk", "ttt.lr=0.1")),
    "ttt chunk, adamw": ("ttt", ("ttt.method=chunk", "ttt.optimizer=adamw", "ttt.lr=0.01")),
    "ttt chunk, muon": ("ttt", ("ttt.method=chunk", "ttt.optimizer=muon", "ttt.lr=0.01")),
    "ttt chunk, tilt": ("ttt", ("ttt.method=chunk", "ttt.lr=0.1", *(key.replace("eval", "ttt") for key in TILT))),
    "ttt lora": ("ttt", ("ttt.method=lora", *LORA)),
    "ttt lora, temperature": (
        "ttt",
        ("ttt.method=lora", *LORA, "ttt.temperature=fixed", "ttt.temperature.value=0.8"),
    ),
    "ttt phased": ("ttt", ("ttt.method=phased", *LORA, "ttt.prefix_docs=4", "ttt.base.chunk_tokens=64")),
}
"""Name, stage and settings."""


def legal_subject(name: str, seed: int, targets: int) -> InProcess:
    """One of them on the small model, for streams of about so many targets."""
    stage, sets = LEGAL[name]
    method: Any = getattr(resolve("tiny", list(sets)).config, stage)
    method, _ = reduced(method, targets)
    about = {"kind": "legal", "name": name, "seed": seed, "targets": targets}
    return InProcess(small_model(seed), method, plain_vocabulary(VOCABULARY), about)
