"""Whole models of the records against vectors from their public scripts: logits, losses and gradients in float32."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.parts.by_document import ByDocument
from pgolf.core.model.parts.depth_scale import DepthScale
from pgolf.core.model.parts.factored_embed import FactoredEmbed
from pgolf.core.model.parts.gated_skips import GatedSkips
from pgolf.core.model.parts.hash_embed import BigramHash
from pgolf.core.model.parts.head_gate import BiasedGate, DenseGate, OutputGate, SparseGate
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.core.model.parts.leaky_relu2 import LeakyRelu2
from pgolf.core.model.parts.multi_token import TokenHeads
from pgolf.core.model.parts.parallel_residual import ParallelResidual
from pgolf.core.model.parts.poly5_softcap import Poly5Softcap
from pgolf.core.model.parts.relu2 import Relu2
from pgolf.core.model.parts.rope import Rope
from pgolf.core.model.parts.smear import CumulativeSmear, GatedSmear, StaticSmear
from pgolf.core.model.parts.tanh_softcap import TanhSoftcap
from pgolf.core.model.parts.ternary import Ternary
from pgolf.core.model.parts.two_lanes import TwoLanes
from pgolf.core.model.parts.unet_skips import UnetSkips
from pgolf.core.model.parts.value_embed import ValueEmbedding
from pgolf.core.model.parts.value_residual import ValueAdd
from pgolf.core.model.parts.vocab_bias import VocabBias
from pgolf.core.model.parts.xsa import Xsa
from pgolf.core.model.parts.yarn import Yarn
from pgolf.core.model.parts.z_loss import ZLoss
from pgolf.core.model.slots import Absent

BANKS = {
    "qo_bank": ("attn.c_q", "attn.proj"),
    "kv_bank": ("attn.c_k", "attn.c_v"),
    "mlp_up_bank": ("mlp.fc",),
    "mlp_down_bank": ("mlp.proj",),
}
RENAMED = {"embed_proj_rev.weight": "head_proj.weight"}


def meta(data: dict[str, np.ndarray]) -> dict[str, Any]:
    """The file's description of itself."""
    return json.loads(str(data["meta"]))


def unbanked(data: dict[str, np.ndarray], prefix: str, layers: int, kv_dim: int = 0) -> dict[str, np.ndarray]:
    """Arrays below a prefix under our names: banks cut into layers, fused projections into queries, keys, values."""
    found: dict[str, np.ndarray] = {}
    for key, value in data.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix):
            continue
        if name in BANKS:
            for part, part_name in enumerate(BANKS[name]):
                for layer in range(layers):
                    found[f"blocks.{layer}.{part_name}.weight"] = value[part * layers + layer]
        elif name.endswith("c_qkv.weight") and "gradcol" in prefix:
            continue  # a sum over queries, keys and values together
        elif name.endswith("c_qkv.weight"):
            parts = np.split(value, [len(value) - 2 * kv_dim, len(value) - kv_dim])
            for letter, part_value in zip("qkv", parts, strict=True):
                found[name.replace("c_qkv", f"c_{letter}")] = part_value
        else:
            found[RENAMED.get(name, name)] = value
    return found


def common(config: dict[str, Any], **parts: Any) -> ModelConfig:
    """The options every record shares."""
    heads = {key: config[key] for key in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads")}
    return ModelConfig(**heads, **parts)


def loaded(config: ModelConfig, weights: dict[str, np.ndarray]) -> GPT:
    """A model with these weights; parameters it does not have are left out, and none may be missing."""
    model = GPT(config)
    names = {spec.name: spec.shape for spec in param_specs(config)}
    model.load_state_dict({name: torch.tensor(weights[name]).view(shape) for name, shape in names.items()})
    return model


def ids_of(data: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets."""
    return torch.from_numpy(data["input_ids"]), torch.from_numpy(data["target_ids"])


def check_grads(model: GPT, data: dict[str, np.ndarray], prefix: str, bound: float, **cut: int) -> int:
    """Compare every stored gradient, and sums and norms of the large ones; returns how many were compared."""
    ours = {name: weight.grad for name, weight in model.named_parameters()}
    compared = 0
    for kind, reduce in (("grad", None), ("gradrow", -1), ("gradcol", -2)):
        for name, value in unbanked(data, f"{kind}{prefix}.", **cut).items():
            grad = ours[name]
            grad = torch.zeros(value.shape) if grad is None else grad if reduce is None else grad.sum(reduce)
            largest = max(float(np.abs(value).max()), 1e-12)
            assert float((grad.view(value.shape) - torch.from_numpy(value)).abs().max()) <= bound * largest, name
            compared += 1
    return compared


def logits_of(model: GPT, ids: torch.Tensor) -> np.ndarray:
    """Soft-capped logits."""
    with torch.no_grad():
        return model.head(model.hidden(ids)).numpy()


def record_1394(config: dict[str, Any], **parts: Any) -> ModelConfig:
    """PR #1394 and #1493 by their configuration."""
    loop = LayerLoop(start=config["loop_start"], end=config["loop_end"], extra_passes=max(config["num_loops"], 1))
    wide = config["embedding_dim"] == config["model_dim"]
    chosen = {
        "mlp": LeakyRelu2(mult=config["mlp_mult"]),
        "position": Rope(dims=config["rope_dims"], reference=config["train_seq_len"]),
        "norm_scale": DepthScale() if config["ln_scale"] else Absent(),
        "xsa": Xsa(last_n=config["xsa_last_n"]),
        "skips": GatedSkips(),
        **({"loop": loop} if config["num_loops"] else {}),
        **({} if wide else {"embed": FactoredEmbed(width=config["embedding_dim"], norm_first=True)}),
        **(
            {"residual": ParallelResidual(start=config["parallel_residual_start"])}
            if "parallel_residual_start" in config
            else {}
        ),
    }
    return common(config, **(chosen | parts))


@pytest.mark.parametrize("name", ["pr1394_gpt", "pr1394_gpt_factored", "pr1493_gpt"])
@pytest.mark.parametrize("mode", ["flat", "loop"])
def test_pr1394_family_golden(oracle, name, mode):
    data = oracle(f"{name}.npz")
    config = meta(data)["config"]
    model = loaded(record_1394(config), unbanked(data, "param.", config["num_layers"]))
    model.looping = mode == "loop"
    ids, targets = ids_of(data)
    np.testing.assert_allclose(
        logits_of(model, ids), data[f"logits_{mode}"], atol=meta(data)["tolerance"]["logits_abs"]
    )
    np.testing.assert_allclose(model.nll(ids, targets).detach().numpy(), data[f"nll_{mode}"], atol=1e-4)
    loss = model(ids, targets)
    assert loss.item() == pytest.approx(float(data[f"loss_{mode}"]), abs=1e-5)
    loss.backward()
    assert check_grads(model, data, f"_{mode}", 1e-4, layers=config["num_layers"]) > 50


def test_pr1394_ntk_and_ungated_skips_golden(oracle):
    data = oracle("pr1394_gpt.npz")
    config = meta(data)["config"]
    weights, (ids, _) = unbanked(data, "param.", config["num_layers"]), ids_of(data)
    stretched = loaded(record_1394(config, position=Rope(dims=config["rope_dims"], reference=16)), weights)
    for stretched.looping in (False, True):
        wanted = data["logits_ntk16_loop" if stretched.looping else "logits_ntk16_flat"]
        np.testing.assert_allclose(logits_of(stretched, ids), wanted, atol=1e-4)
    plain = loaded(record_1394(config, skips=UnetSkips()), weights)
    np.testing.assert_allclose(logits_of(plain, ids), data["logits_nogates_loop"], atol=1e-4)


def record_1855(config: dict[str, Any], **parts: Any) -> ModelConfig:
    """PR #1855 by its configuration."""
    chosen = {
        "smear": GatedSmear(window=config["gate_window"]),
        "mlp": LeakyRelu2(mult=config["mlp_mult"]),
        "position": Rope(dims=config["rope_dims"]),
        "norm_scale": DepthScale(),
        "xsa": Xsa(),
        "head_gate": SparseGate(window=config["gate_window"], scale=config["sparse_attn_gate_scale"]),
        "skips": GatedSkips(),
        "loop": LayerLoop(start=config["loop_start"], end=config["loop_end"], extra_passes=config["num_loops"]),
        "residual": TwoLanes(start=config["parallel_start_layer"], final=config["parallel_final_lane"]),
    }
    return common(config, **(chosen | parts))


@pytest.mark.parametrize("mode", ["flat", "loop"])
def test_pr1855_golden(oracle, mode):
    data = oracle("pr1855_gpt.npz")
    config = meta(data)["config"]
    model = loaded(record_1855(config), unbanked(data, "param.", config["num_layers"]))
    model.looping = mode == "loop"
    ids, targets = ids_of(data)
    np.testing.assert_allclose(logits_of(model, ids), data[f"logits_{mode}"], atol=1e-4)
    loss = model(ids, targets)
    assert loss.item() == pytest.approx(float(data[f"loss_{mode}"]), abs=1e-5)
    loss.backward()
    assert check_grads(model, data, f"_{mode}", 1e-4, layers=config["num_layers"]) > 50


@pytest.mark.parametrize("mode", ["flat", "loop"])
def test_pr1855_packed_documents_golden(oracle, mode):
    data = oracle("pr1855_gpt.npz")
    config = meta(data)["config"]
    packed = record_1855(config, documents=ByDocument(max_tokens=config["train_seq_len"]))
    model = loaded(packed, unbanked(data, "param.", config["num_layers"]))
    model.looping = mode == "loop"
    ids, targets = (x.reshape(1, -1) for x in ids_of(data))
    np.testing.assert_allclose(
        logits_of(model, ids)[0], data[f"logits_varlen_{mode}"].reshape(ids.numel(), -1), atol=1e-4
    )
    loss = model(ids, targets)
    assert loss.item() == pytest.approx(float(data[f"loss_varlen_{mode}"]), abs=1e-5)
    loss.backward()
    assert check_grads(model, data, f"_varlen_{mode}", 1e-4, layers=config["num_layers"]) > 30


VARIANTS = {
    "attn_out_gate_proj": {"head_gate": OutputGate()},
    "attn_out_gate_q": {"head_gate": OutputGate(reads="q")},
    "gated_attn_dense": {"head_gate": DenseGate()},
    "no_gate": {"head_gate": Absent()},
    "final_lane_attn": {"residual": TwoLanes(start=4, final="attn")},
    "final_lane_mlp": {"residual": TwoLanes(start=4, final="mlp")},
    "no_skip_gates": {"skips": UnetSkips()},
    "no_smear": {"smear": Absent()},
    "ntk_ref16": {"position": Rope(dims=8, reference=16)},
    "parallel_from_2": {"residual": TwoLanes(start=2)},
    "no_parallel_flat": {"residual": TwoLanes(start=5)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_pr1855_variants_golden(oracle, variant):
    data, changed = oracle("pr1855_gpt.npz"), oracle("pr1855_gpt_variants.npz")
    config = meta(data)["config"]
    parts = dict(VARIANTS[variant])
    if variant == "no_parallel_flat":
        parts = {"residual": record_1855(config).residual.__class__.__mro__[2]()}
    weights = unbanked(data, "param.", config["num_layers"]) | unbanked(
        changed, f"param_{variant}.", config["num_layers"]
    )
    model = loaded(record_1855(config, **parts), weights)
    model.looping = not variant.endswith("flat")
    np.testing.assert_allclose(logits_of(model, ids_of(data)[0]), changed[f"logits_{variant}"], atol=1e-4)


def record_1019(config: dict[str, Any], **parts: Any) -> ModelConfig:
    """PR #1019 by its configuration."""
    chosen = {
        "smear": StaticSmear(),
        "hash_embed": BigramHash(buckets=config["bigram_vocab_size"], dim=config["bigram_dim"], trigram=True),
        "mlp": LeakyRelu2(mult=config["mlp_mult"]),
        "position": Rope(dims=config["rope_dims"]),
        "norm_scale": DepthScale(),
        "xsa": Xsa(last_n=config["xsa_last_n"]),
        "head_gate": BiasedGate(),
        "value_embed": ValueEmbedding(dim=config["ve_dim"], on=config["ve_layers"]),
        "value_residual": ValueAdd(),
        "logit_softcap": TanhSoftcap(cap=config["logit_softcap"]),
    }
    return common(config, **(chosen | parts))


def test_pr1019_golden(oracle):
    data = oracle("pr1019_gpt.npz")
    config = meta(data)["config"]
    weights, (ids, targets) = unbanked(data, "param.", config["num_layers"]), ids_of(data)
    model = loaded(record_1019(config), weights)
    np.testing.assert_allclose(logits_of(model, ids), data["logits"], atol=1e-4)
    loss = model(ids, targets)
    assert loss.item() == pytest.approx(float(data["loss"]), abs=1e-5)
    loss.backward()
    assert check_grads(model, data, "", 1e-3, layers=config["num_layers"]) > 40
    helped = loaded(record_1019(config, multi_token=TokenHeads()), weights)
    assert helped(ids, targets).item() == pytest.approx(float(data["loss_with_mtp"]), abs=1e-5)


@pytest.mark.parametrize(
    ("variant", "parts"),
    [
        ("no_trigram", {"hash_embed": BigramHash(buckets=61, dim=16)}),
        ("no_value_residual", {"value_residual": Absent()}),
        ("no_gated_attention", {"head_gate": Absent()}),
        ("no_value_embedding", {"value_embed": Absent()}),
        ("no_bigram", {"hash_embed": Absent()}),
        ("no_xsa", {"xsa": Absent()}),
    ],
)
def test_pr1019_without_one_golden(oracle, variant, parts):
    data = oracle("pr1019_gpt.npz")
    config = meta(data)["config"]
    model = loaded(record_1019(config, **parts), unbanked(data, "param.", config["num_layers"]))
    np.testing.assert_allclose(logits_of(model, ids_of(data)[0]), data[f"logits_{variant}"], atol=1e-4)


def test_pr1019_hash_rows_golden(oracle):
    data = oracle("pr1019_gpt.npz")
    config = meta(data)["config"]
    model = loaded(record_1019(config), unbanked(data, "param.", config["num_layers"]))
    ids = ids_of(data)[0]
    pairs, triples = model.config.hash_embed.rows(model.flow(ids, torch.zeros(1)))
    np.testing.assert_array_equal(pairs.numpy(), data["bigram_ids"])
    np.testing.assert_array_equal(triples.numpy(), data["trigram_ids"])


def test_ternary_golden(oracle):
    data = oracle("ternary_gpt.npz")
    config = meta(data)["config"]
    parts = {
        "embed": FactoredEmbed(width=config["embed_dim"]),
        "smear": CumulativeSmear(),
        "mlp": Relu2(mult=config["mlp_mult"]),
        "position": Yarn(base=config["rope_base"], longest=config["yarn_max_len"], trained=config["train_seq_len"]),
        "logit_bias": VocabBias(),
        "logit_softcap": Poly5Softcap(cap=config["logit_softcap"]),
        "aux_loss": ZLoss(),
        "precision": Ternary(group=config["group_size"]),
    }
    cut = {
        "layers": config["num_layers"],
        "kv_dim": config["num_kv_heads"] * config["model_dim"] // config["num_heads"],
    }
    model = loaded(common(config, **parts), unbanked(data, "param.", **cut))
    ids, targets = ids_of(data)
    np.testing.assert_allclose(logits_of(model, ids), data["logits"], atol=1e-3)
    loss = model(ids, targets)
    assert loss.item() == pytest.approx(float(data["loss"]), abs=1e-4)
    loss.backward()
    assert check_grads(model, data, "", 1e-3, **cut) > 30
