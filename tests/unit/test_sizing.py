"""Sizes before training: the records' published ones, and what makes stated bits hold no longer."""

import pytest

from pgolf.config.load import preset_names, resolve
from pgolf.sizing import FINE, as_recorded, gaussian_entropy, predict, size_document

PUBLISHED = {
    "baseline_sp1024": (15_863_489, 0.06),
    "pr638": (15_940_000, 0.06),
    "pr1512": (16_118_346, 0.06),
    "ternary": (15_995_705, 0.06),
    "pr1394": (15_985_678, 0.02),
    "pr1493": (15_992_694, 0.02),
    "pr1855": (15_901_919, 0.02),
    "leader": (15_901_919, 0.02),
}
"""Bytes of artifact and script, and the widest interval either way."""


@pytest.mark.parametrize("preset", PUBLISHED)
def test_the_interval_is_narrow_and_holds_the_published_size(preset: str) -> None:
    published, widest = PUBLISHED[preset]
    record = as_recorded(resolve(preset).config)
    least, most = record["artifact_bytes_low"], record["artifact_bytes_high"]
    assert least <= published - record["code_bytes"] <= most
    assert most - record["artifact_bytes"] <= widest * record["artifact_bytes"]
    assert abs(record["total_bytes"] - published) < 0.002 * published


@pytest.mark.parametrize("preset", ["pr1394", "pr1493", "pr1855", "leader"])
def test_what_pgolf_makes_of_a_record_takes_what_the_record_did(preset: str) -> None:
    document = size_document(resolve(preset).config, preset)
    published = PUBLISHED[preset][0] - document["as_recorded"]["code_bytes"]
    assert document["artifact_bytes"] == pytest.approx(published, rel=0.01)
    assert document["total_bytes"] < 1.0002 * document["cap_bytes"]
    assert document["artifact_bytes_low"] <= published <= document["artifact_bytes_high"]


def test_control_tensors_as_float16_take_half() -> None:
    for key in ("quant.control_dtype", "quant.method=by_role quant.control.control_dtype"):
        *sets, name = key.split()
        sizes = [predict(resolve("tiny", [*sets, f"{name}={kind}"]).config)[0] for kind in ("float32", "float16")]
        single, half = (sum(row.bytes for row in rows if row.spec.role == "control") for rows in sizes)
        assert 0.45 < half / single < 0.6


def test_every_record_states_its_bits_and_no_twin_does() -> None:
    stating = {name for name in preset_names() if as_recorded(resolve(name).config)}
    assert stating == set(PUBLISHED)


@pytest.mark.parametrize(
    "change", ["quant.bits=5", "compress.method=zstd", "quant.method=row_quantile", "model.model_dim=256"]
)
def test_another_quantizer_or_codec_makes_stated_bits_void(change: str) -> None:
    config = resolve("pr1394", [change]).config
    assert as_recorded(config) == {} and size_document(config, "pr1394")["as_recorded"] == {}
    stored = resolve("pr1394").values
    assert as_recorded(resolve(stored=stored).config) and not as_recorded(resolve(stored=stored, sets=[change]).config)


def test_stated_bits_hold_for_other_models() -> None:
    smaller = resolve("pr1394", ["model.num_layers=10"]).config
    layer = 2 * 512 * 512 + 2 * 256 * 512 + 2 * 512 * 2048
    saved = as_recorded(resolve("pr1394").config)["artifact_bytes"] - as_recorded(smaller)["artifact_bytes"]
    assert saved == pytest.approx(layer * 3.39 / 8, rel=0.01)


def test_the_prediction_is_the_sum_of_its_tensors() -> None:
    config = resolve("pr1493").config
    _, size, width = predict(config)
    document = size_document(config, "pr1493")
    assert document["artifact_bytes"] == size.artifact_bytes
    assert abs(sum(row["bytes"] for row in document["tensors"]) - size.artifact_bytes) < 2000
    assert document["artifact_bytes_low"] < size.artifact_bytes < document["artifact_bytes_high"] and width <= 0.02


@pytest.mark.parametrize("rounding", ["nearest", "trellis"])
def test_a_rate_asked_for_is_the_rate_predicted(rounding: str) -> None:
    sets = ["quant.steps=curvature", f"quant.rounding={rounding}", "quant.bits_per_weight=3.4", "compress=store"]
    config = resolve("pr1394", [*sets, "compress.method=zstd"]).config
    rows, _, width = predict(config)
    coded = [row for row in rows if len(row.spec.shape) == 2 and row.spec.role != "control"]
    assert all(3.4 < row.bits_per_weight < 3.5 for row in coded) and width > 0.05
    wider = predict(resolve("pr1394", [*sets[:2], "quant.theta=2"]).config)[1].artifact_bytes
    plain = predict(resolve("pr1394", sets[:2]).config)[1].artifact_bytes
    assert 8 * (plain - wider) / sum(row.spec.numel for row in coded) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("sets", [("quant.method=ternary",), ("quant.method=binary",), ("quant.method=by_role",)])
def test_scales_of_groups_are_counted(sets: tuple[str, ...]) -> None:
    """Of Gaussian rows whose deviations differ by 5 %, through the real quantizer and codec."""
    import torch

    from pgolf.core.artifact import encode_artifact
    from pgolf.core.model.config import param_specs
    from pgolf.core.quant.base import quantize_model

    groups = ["quant.group=32"]
    if "quant.method=by_role" in sets:
        groups = [f"quant.{role}.{key}" for role in ("embed", "attn", "mlp") for key in ("method=ternary", "group=32")]
    config = resolve("tiny", ["compress.method=lzma", "model.model_dim=128", *sets, *groups]).config
    draw = torch.Generator().manual_seed(1)
    weights = {spec.name: torch.randn(spec.shape, generator=draw) for spec in param_specs(config.model)}
    for weight in weights.values():
        if weight.ndim == 2:
            weight *= 0.05 * (0.05 * torch.randn(len(weight), 1, generator=draw)).exp()
    blob = encode_artifact(quantize_model(config.model, weights, config.quant, {}), config.compress, b"{}")
    assert predict(config)[1].artifact_bytes == pytest.approx(len(blob), rel=0.04)


@pytest.mark.parametrize("codec", ["brotli", "packed"])
@pytest.mark.parametrize("key", ["quant.step_ratio=1e-30", "quant.k=1e-9"])
def test_steps_beyond_reason_have_a_size_at_once(key: str, codec: str) -> None:
    rows, _, _ = predict(resolve("tiny", ["quant.method=sdclip", key, f"compress.method={codec}"]).config)
    assert all(7 < row.bits_per_weight <= 8.1 for row in rows if row.spec.role in ("attn", "mlp"))


def test_the_entropy_of_fine_steps_goes_on_where_sums_end() -> None:
    below, above = gaussian_entropy(0.9999999 * FINE), gaussian_entropy(1.0000001 * FINE)
    assert below == pytest.approx(above, abs=1e-4)
    assert gaussian_entropy(FINE / 4) == pytest.approx(below + 2, abs=1e-4)
