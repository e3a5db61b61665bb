"""Import of the records' state dicts: logits through pgolf's model equal those of the public scripts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pgolf.config.run import RunConfig
from pgolf.config.tree import to_values
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.model.config import ModelConfig
from pgolf.core.model.gpt import GPT
from pgolf.core.model.parts.hash_embed import EngramLite
from pgolf.core.model.parts.head_gate import DenseGate, OutputGate
from pgolf.core.model.parts.head_mix import HeadMixing
from pgolf.core.model.parts.low_rank_mlp import LowRankMlp
from pgolf.core.model.parts.multi_token import TokenHeads
from pgolf.core.model.parts.no_skips import NoSkips
from pgolf.core.model.parts.phase_mix import ScalarMix
from pgolf.core.model.parts.plain_mix import PlainMix
from pgolf.core.model.parts.smear import CumulativeSmear
from pgolf.core.model.parts.swiglu import SwiGlu
from pgolf.core.model.parts.untied_embed import UntiedEmbed
from pgolf.core.model.parts.value_residual import ValueMix
from pgolf.core.model.parts.vocab_bias import VocabBias
from pgolf.core.model.parts.xsa import GatedXsa
from pgolf.core.quant.qtensor import QTensor
from pgolf.foreign import import_file
from pgolf.foreign_names import OPTIONS
from pgolf.stages.model_files import load_checkpoint, load_quantized

RECORD = ["position.dims=8", "norm_scale.kind=depth", "mlp.kind=leaky_relu2"]
LOOP = ["loop.kind=layers", "loop.start=2", "loop.end=3", "loop.extra_passes=2"]
SETS: dict[str, list[str]] = {
    "pr1394_gpt": [*RECORD, *LOOP, "xsa.kind=xsa", "xsa.last_n=4", "position.reference=40"],
    "pr1394_gpt_factored": [*RECORD, "norm_scale.kind=none", "xsa.kind=xsa", "xsa.last_n=2", "embed.norm_first=true"],
    "pr1493_gpt": [*RECORD, *LOOP, "xsa.kind=xsa", "residual.kind=parallel", "residual.start=3"],
    "pr1855_gpt": [*RECORD, *LOOP, "xsa.kind=xsa", "residual.start=4", "head_gate.scale=0.5"],
    "pr1019_gpt": [*RECORD, "xsa.kind=xsa", "xsa.last_n=3", "value_embed.on=2,4", "hash_embed.trigram=true"],
    "ternary_gpt": [
        *("position.kind=yarn", "position.base=5000", "position.longest=64", "position.trained=32"),
        *("precision.kind=ternary", "precision.group=32", "logit_softcap.kind=poly5", "logit_softcap.cap=10"),
    ],
}
"""What neither names nor shapes of a record say."""


@pytest.fixture
def record(oracle, tmp_path):
    """Name of a file of vectors (and changes to its tensors, and metadata) -> its parameters as a state dict file."""

    def write(name: str, changes: dict[str, Any] | None = None, options: dict[str, Any] | None = None) -> Path:
        arrays = {key.removeprefix("param."): value for key, value in oracle(f"{name}.npz").items() if "param." in key}
        tensors = {key: torch.from_numpy(value) for key, value in arrays.items()} | (changes or {})
        kept = {key: tensor.contiguous() for key, tensor in tensors.items() if tensor is not None}
        save_file(kept, tmp_path / f"{name}.safetensors", {"config": json.dumps(options)} if options else None)
        return tmp_path / f"{name}.safetensors"

    return write


def brought_in(path: Path, sets: list[str], preset: str = "") -> tuple[GPT, dict[str, Any]]:
    """The model as pgolf reads it back, and what import says of it."""
    out = path.parent / "out" / "checkpoint.safetensors"
    document = import_file(path, out, preset, [f"model.{text}" for text in sets])
    return load_checkpoint(out).build(torch.device("cpu")), document


def compare(model: GPT, data: dict[str, np.ndarray]) -> None:
    """Logits against the script's, with the loop off and on where there is one."""
    bound = json.loads(str(data["meta"]))["tolerance"]["logits_abs"]
    for name in ("logits", "logits_flat", "logits_loop"):
        if name in data:
            model.looping = name != "logits_flat"
            with torch.no_grad():
                logits = model.head(model.hidden(torch.from_numpy(data["input_ids"]))).numpy()
            np.testing.assert_allclose(logits, data[name], atol=bound)


@pytest.mark.parametrize("name", SETS)
def test_logits_with_what_cannot_be_inferred_set_by_hand(oracle, record, name):
    model, document = brought_in(record(name), SETS[name])
    compare(model, oracle(f"{name}.npz"))
    assert not {text.split("=")[0] for text in document["guessed"]} & {f"model.{s.split('=')[0]}" for s in SETS[name]}


@pytest.mark.parametrize("name", SETS)
def test_logits_with_the_options_in_the_metadata(oracle, record, name):
    data = oracle(f"{name}.npz")
    options = json.loads(str(data["meta"]))["config"] | ({"trigram": True} if name == "pr1019_gpt" else {})
    model, document = brought_in(record(name, options={key: str(value) for key, value in options.items()}), [])
    compare(model, data)
    assert document["unread"] == []
    told = {
        "rope_dims": "position.dims",
        "xsa_last_n": "xsa.last_n",
        "num_loops": "loop.kind",
        "rope_type": "position.longest",
    }
    for option, key in told.items():
        assert option not in options or not any(text.startswith(f"model.{key}") for text in document["guessed"])


def test_guesses_are_the_records_habits_and_are_listed(record):
    _, document = brought_in(record("pr1855_gpt"), [])
    assert [text.removeprefix("model.") for text in document["guessed"]] == [
        *("documents.kind=whole_rows", "smear.bos_id=1", "position.kind=rope", "position.base=10000.0"),
        *("position.dims=16", "position.reference=0", "norm_scale.kind=depth", "key_offset.kind=none"),
        *("window.kind=none", "xsa.kind=xsa", "xsa.last_n=0", "head_gate.scale=0.5", "mlp.kind=leaky_relu2"),
        *("mlp.slope=0.5", "loop.kind=layers", "loop.start=2", "loop.end=3", "loop.extra_passes=2"),
        *("residual.kind=two_lanes", "residual.start=5", "residual.final=mean", "logit_softcap.kind=tanh"),
        *("logit_softcap.cap=30.0", "precision.kind=none"),
    ]
    model = document["model"]
    assert model["smear"] == {"kind": "gated", "window": 12, "bos_id": 1}
    assert (model["head_gate"]["kind"], model["skips"]["kind"], model["mlp"]["mult"]) == ("sparse", "gated", 2.0)


def test_what_shapes_tell_is_no_guess(record):
    _, document = brought_in(record("pr1019_gpt"), [])
    model = document["model"]
    assert (model["hash_embed"]["buckets"], model["hash_embed"]["dim"], model["value_embed"]["dim"]) == (61, 16, 12)
    assert (model["smear"]["kind"], model["value_residual"]["kind"]) == ("static", "add")
    assert (model["head_gate"]["kind"], model["multi_token"]["extra_tokens"]) == ("biased", 2)
    assert model["loop"]["kind"] == "none" and not any("loop" in text for text in document["guessed"])
    assert "model.value_embed.on=3,4" in document["guessed"] and "model.position.reference=1024" in document["guessed"]
    _, document = brought_in(record("ternary_gpt"), [])
    assert document["model"]["embed"] | {"init_std": 0} == {
        "kind": "factored", "width": 40, "norm_first": False, "init_std": 0,
    }  # fmt: skip
    assert document["model"]["precision"]["group"] == 64 and "model.precision.kind=ternary" in document["guessed"]


@pytest.mark.reads_pt
@pytest.mark.parametrize(
    "parts",
    [
        {"embed": UntiedEmbed(), "mlp": SwiGlu(mult=1.7)},
        {"hash_embed": EngramLite(buckets=5, dim=3), "mlp": LowRankMlp(rank=7, mult=2.5)},
        {"head_mix": HeadMixing(values=True), "mix": ScalarMix(), "skips": NoSkips()},
        {"head_mix": HeadMixing(), "mix": PlainMix(), "xsa": GatedXsa(last_n=2)},
        {"head_gate": OutputGate(window=5), "value_residual": ValueMix(), "smear": CumulativeSmear()},
        {"head_gate": DenseGate(), "multi_token": TokenHeads(extra_tokens=3), "logit_bias": VocabBias()},
    ],
)
def test_techniques_are_known_by_their_tensors(make_model, tmp_path, parts):
    sizes = {"vocab_size": 60, "num_layers": 3, "model_dim": 24, "num_heads": 4, "num_kv_heads": 2}
    torch.save(make_model(ModelConfig(**sizes, **parts)).state_dict(), tmp_path / "model.pt")
    model, _ = brought_in(tmp_path / "model.pt", [])
    for slot, part in parts.items():
        found, initial = getattr(model.config, slot), {"mult", "init_std", "slope"}
        assert type(found) is type(part)
        assert {k: v for k, v in vars(found).items() if k not in initial} == {
            k: v for k, v in vars(part).items() if k not in initial
        }


def test_a_narrow_embedding_is_guessed_to_be_normalised_first(record):
    _, document = brought_in(record("pr1394_gpt_factored"), [])
    assert "model.embed.norm_first=True" in document["guessed"]


def test_a_preset_fills_in_what_shapes_do_not_tell(record, tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text('[model]\nvocab_size = 8192\nmlp = { kind = "leaky_relu2", mult = 4.0, slope = 0.3 }\n')
    model, document = brought_in(record("pr1493_gpt"), [], preset=str(preset))
    assert (model.config.vocab_size, model.config.mlp.mult, model.config.mlp.slope) == (109, 2.0, 0.3)
    assert document["model"]["xsa"] == {"kind": "none"}
    assert [text.split("=")[0] for text in document["guessed"]] == [
        f"model.loop.{key}" for key in ("kind", "start", "end", "extra_passes")
    ]


def test_a_records_preset_leaves_nothing_to_guess(oracle, record):
    smaller = [*LOOP, "position.dims=8", "position.reference=40", "xsa.last_n=4"]
    model, document = brought_in(record("pr1394_gpt"), smaller, preset="pr1394")
    compare(model, oracle("pr1394_gpt.npz"))
    assert document["guessed"] == [] and model.config.vocab_size == 131


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("pr1855_gpt", {"qo_bank": torch.zeros(11, 64, 64)}, "qo_bank"),
        ("pr1855_gpt", {"kv_bank": torch.zeros(12, 32)}, "kv_bank"),
        ("pr1855_gpt", {"kv_bank": torch.zeros(12, 31, 64)}, "attn.c_k.weight"),
        ("pr1855_gpt", {"mlp_up_bank": torch.zeros(7, 128, 64)}, "mlp_up_bank"),
        ("pr1855_gpt", {"mlp_down_bank": torch.zeros(6, 64, 96)}, "mlp.proj.weight"),
        ("pr1855_gpt", {"mlp_down_bank": None}, "blocks.0.mlp.proj.weight"),
        ("pr1855_gpt", {"blocks.2.attn.c_q.weight": torch.zeros(64, 64)}, "blocks.2.attn.c_q.weight"),
        ("pr1855_gpt", {"parallel_resid_lambdas": None}, "parallel_resid_lambdas"),
        ("pr1855_gpt", {"smear_gate.weight": torch.zeros(12)}, "smear_gate.weight"),
        ("pr1855_gpt", {"blocks.3.attn.attn_gate_w": torch.zeros(4, 11)}, "blocks.3.attn.attn_gate_w"),
        ("pr1855_gpt", {"blocks.3.attn.new_trick": torch.zeros(4)}, "blocks.3.attn.new_trick"),
        ("pr1855_gpt", {f"blocks.3.{key}": None for key in ("attn_scale", "mlp_scale", "resid_mix")}, "blocks.3"),
        ("pr1394_gpt", {"skip_gates": torch.zeros(4, 64)}, "skip_gates"),
        ("pr1394_gpt", {"blocks.9.attn_scale": torch.zeros(64)}, "blocks.6"),
        ("pr1394_gpt", {"blocks.0.attn.q_gain": torch.zeros(3)}, "model_dim"),
        ("pr1394_gpt", {"tok_emb.weight": torch.zeros(131, 64, dtype=torch.int64)}, "tok_emb.weight"),
        ("pr1394_gpt_factored", {"embed_proj.weight": torch.zeros(64, 47)}, "embed_proj.weight"),
        ("pr1019_gpt", {"ve_layer_scales.1": None, "ve_layer_scales.2": torch.ones(1)}, "ve_layer_scales"),
        ("pr1019_gpt", {"bigram.proj.weight": None}, "bigram.proj.weight"),
        ("pr1019_gpt", {"mtp_heads.1.weight": torch.zeros(103, 63)}, "mtp_heads.1.weight"),
        ("ternary_gpt", {"blocks.1.attn.c_qkv.weight": torch.zeros(129, 64)}, "blocks.1.attn.c_qkv.weight"),
        ("ternary_gpt", {"blocks.1.attn.c_qkv.weight": torch.zeros(64)}, "blocks.1.attn.c_qkv.weight"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(record, tmp_path, name, changes, word):
    with pytest.raises(InputError, match=word.replace(".", r"\.")):
        import_file(record(name, changes), tmp_path / "out.safetensors", "", [])
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_layers": 7}, "num_layers 7, the tensors say 6"),
        ({"ln_scale": "perhaps"}, "ln_scale"),
        ({"xsa_last_n": "all"}, "xsa_last_n"),
        ({"softcap_type": "new"}, "softcap_type"),
        ({"rope_dims": "many"}, "rope.dims|position.dims"),
        ([1], "JSON object"),
    ],
)
def test_metadata_that_is_wrong_is_refused(record, tmp_path, options, word):
    with pytest.raises(InputError, match=word):
        import_file(record("pr1394_gpt", options=options), tmp_path / "out.safetensors", "", [])


def test_options_that_are_not_understood_are_listed(record):
    _, document = brought_in(record("pr1394_gpt", options={"window_size": 256, "rope_dims": 8, "matrix_lr": 0.02}), [])
    assert document["unread"] == ["matrix_lr", "window_size"] and document["model"]["position"]["dims"] == 8


def test_options_for_parts_the_model_does_not_have_are_left_out(record):
    options = {"sparse_attn_gate_scale": 1.0, "ve_layers": "9,10", "loop_start": 4, "num_loops": 0, "group_size": 64}
    _, document = brought_in(record("pr1394_gpt_factored", options=options), [])
    model = document["model"]
    assert {model[slot]["kind"] for slot in ("head_gate", "value_embed", "loop", "precision")} == {"none"}


def test_every_option_lands_on_a_key():
    slots = to_values(RunConfig())["model"]
    samples = {"rope_type": "yarn", "softcap_type": "poly", "activation": "relu2"}
    for name, says in OPTIONS.items():
        assert says(samples.get(name, "1")).keys() <= slots.keys(), name


def test_contradicting_set_is_a_configuration_error(record, tmp_path):
    with pytest.raises(ConfigError, match="group"):
        import_file(record("ternary_gpt"), tmp_path / "out.safetensors", "", ["model.precision.group=48"])
    with pytest.raises(InputError, match="tok_emb"):
        import_file(record("ternary_gpt"), tmp_path / "out.safetensors", "", ["model.vocab_size=91"])


@pytest.mark.reads_pt
def test_a_tensor_larger_than_its_storage_is_never_unfolded(record, tmp_path):
    state = {"tok_emb.weight": torch.zeros(1).expand(1 << 16, 1 << 24), "module.blocks.0.attn.q_gain": torch.ones(8)}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"tok_emb\.weight is not a plain tensor"):
        import_file(tmp_path / "model.pt", tmp_path / "out.safetensors", "", [])


def int8(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and float16 scales of the rows."""
    scale = (tensor.abs().amax(-1) / 127).clamp_min(1e-6).half()
    return (tensor / scale.float()[..., None]).round().clamp(-127, 127).to(torch.int8), scale


@pytest.mark.reads_pt
@pytest.mark.parametrize("name", ["pr1394_gpt", "pr1855_gpt", "ternary_gpt"])
def test_int8_archives_of_the_records(oracle, record, tmp_path, name):
    archive: dict[str, Any] = {"quantized": {}, "scales": {}, "passthrough": {}}
    for key, tensor in load_file(record(name)).items():
        key = f"module.{key}"
        if key.endswith(("bank", "c_qkv.weight", "mlp.fc.weight", "skip_gates")):
            archive["quantized"][key], archive["scales"][key] = int8(tensor)
        else:
            archive["passthrough"][key] = tensor.half() if key.endswith(".weight") else tensor
    torch.save(archive, tmp_path / "model.pt")
    out, sets = tmp_path / "out.safetensors", [f"model.{text}" for text in SETS[name]]
    assert import_file(tmp_path / "model.pt", out, "", sets)["kind"] == "quantized"
    model, (whole, _) = load_quantized(out), brought_in(record(name), SETS[name])
    assert model.quantized is not None
    coded = [key for key, tensor in model.quantized.tensors.items() if isinstance(tensor, QTensor)]
    assert len(coded) == {"pr1394_gpt": 6, "pr1855_gpt": 36, "ternary_gpt": 16}[name]
    for key, tensor in whole.state_dict().items():
        assert model.weights[key].shape == tensor.shape
        assert float((model.weights[key] - tensor).abs().max()) <= 0.006 * float(tensor.abs().max()) + 1e-6, key
    for wrong in (
        lambda scale: torch.tensor(0.1),
        lambda scale: scale.new_ones(*scale.shape, 7),
        lambda scale: scale[1:],
    ):
        torch.save(archive | {"scales": {k: wrong(v) for k, v in archive["scales"].items()}}, tmp_path / "model.pt")
        with pytest.raises(InputError, match="one scale per row"):
            import_file(tmp_path / "model.pt", out, "", sets)
