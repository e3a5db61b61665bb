"""Sizes before training: the records' published ones, and what makes stated bits hold no longer."""

import pytest

from pgolf.config.load import preset_names, resolve
from pgolf.sizing import as_recorded, predict, size_document

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
