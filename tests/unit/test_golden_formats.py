"""Files of format version 1 stay readable, and say what they said when they were written."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from pgolf.core.errors import InputError
from pgolf.core.files import read_json
from pgolf.core.tensorfile import load_tensors
from pgolf.dataset import open_dataset
from pgolf.stages.calibrate import HESSIANS_SCHEMA, read_calibration
from pgolf.stages.checkpoints import RESUME_SCHEMA
from pgolf.stages.evaluate import SCORE_SCHEMA, upgrade_score
from pgolf.stages.manifest import read_entries
from pgolf.stages.model_files import ModelFile, load_model

GOLDEN = Path(__file__).parent.parent / "golden" / "formats_v1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


def digest(model: ModelFile) -> str:
    """SHA-256 over names and float32 bytes of the weights."""
    sha = hashlib.sha256()
    for name in sorted(model.weights):
        sha.update(name.encode() + model.weights[name].float().numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "quantized.safetensors", "model.pgz"])
def test_models(name: str) -> None:
    """Each model file gives the weights and the architecture it was written with."""
    model = load_model(GOLDEN / name)
    assert digest(model) == EXPECTED[name]["weights_sha256"]
    assert model.kind == EXPECTED[name]["kind"]
    assert (model.config.model.num_layers, model.config.model.model_dim) == (2, 16)
    assert model.tokenizer_sha256 == EXPECTED["tokenizer_sha256"]


def test_quantized_and_artifact_agree() -> None:
    """The artifact holds the very codes of the quantized model."""
    quantized, artifact = load_model(GOLDEN / "quantized.safetensors"), load_model(GOLDEN / "model.pgz")
    assert quantized.quantized is not None
    assert artifact.quantized is not None
    assert quantized.quantized.digest() == artifact.quantized.digest()


def test_dataset() -> None:
    """The dataset opens with its own tokenizer, verified hashes and the recorded sizes."""
    dataset = open_dataset(GOLDEN / "data")
    assert dataset.tokenizer_sha256 == EXPECTED["tokenizer_sha256"]
    assert len(dataset.validation()[0]) == EXPECTED["val_tokens"]
    assert dataset.fingerprint("train", "val") == EXPECTED["fingerprint"]


def test_resume_and_hessians() -> None:
    """Optimizer state and Hessians load under their schemas."""
    state, facts, _ = load_tensors(GOLDEN / "resume.safetensors", RESUME_SCHEMA)
    assert facts["step"] == 2
    assert "momentum.blocks.0.attn.c_q.weight" in state
    hessians, _, _ = load_tensors(GOLDEN / "hessians.safetensors", HESSIANS_SCHEMA)
    assert hessians["blocks.1.mlp.proj.weight"].shape == (32, 32)
    assert float(hessians["tok_emb.weight"].diagonal().sum()) == pytest.approx(EXPECTED["hessian_trace"], rel=1e-6)
    found, facts = read_calibration(GOLDEN / "hessians.safetensors")
    assert found.inputs.keys() == hessians.keys() and not found.outputs and not facts["gradients"]
    assert found.tokens == facts["calibration_seqs"] * facts["calibration_seq_len"]


def test_score_and_manifest() -> None:
    """The score document's ratios follow from its sums; the manifest names its output."""
    document = read_json(GOLDEN / "score.json")
    score = document["score"]
    assert score["bpb"] == score["nats"] / (math.log(2) * score["bytes"])
    assert score["tokens"] == EXPECTED["val_tokens"] - 1
    upgraded = upgrade_score(document)
    assert upgraded["schema"] == SCORE_SCHEMA and upgraded["score"] == score
    part = upgrade_score(document | {"partial": True})["score"]
    assert part == {**{key: value for key, value in score.items() if key != "bpb"}, "bpb_partial": score["bpb"]}
    entry = read_entries(GOLDEN)["model.pgz"]
    assert entry["sha256"] == hashlib.sha256((GOLDEN / "model.pgz").read_bytes()).hexdigest()
    assert entry["resolved"]["model"]["num_layers"] == 2


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    """A file of a later format version is refused with the version in the message."""
    blob = bytearray((GOLDEN / "model.pgz").read_bytes())
    blob[4] = 4
    (tmp_path / "model.pgz").write_bytes(blob)
    with pytest.raises(InputError, match="version 4"):
        load_model(tmp_path / "model.pgz")
    content = (GOLDEN / "quantized.safetensors").read_bytes().replace(b"pgolf.quantized/1", b"pgolf.quantized/4")
    (tmp_path / "quantized.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="version 4"):
        load_model(tmp_path / "quantized.safetensors")
    content = (GOLDEN / "hessians.safetensors").read_bytes().replace(b"pgolf.hessians/1", b"pgolf.hessians/4")
    (tmp_path / "hessians.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="version 4"):
        read_calibration(tmp_path / "hessians.safetensors")
    content = (GOLDEN / "checkpoint.safetensors").read_bytes().replace(b"pgolf.checkpoint/1", b"pgolf.checkpoint/2")
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="version 2"):
        load_model(tmp_path / "checkpoint.safetensors")
    manifest = json.loads((GOLDEN / "data" / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"schema": "pgolf.dataset/2"}))
    with pytest.raises(InputError, match="dataset/2"):
        open_dataset(tmp_path)


def test_shards_are_the_challenges_own_format() -> None:
    """A reader that knows nothing of pgolf gets the ids: 256 int32 of header, then uint16."""
    path = GOLDEN / "data" / "fineweb_val_000000.bin"
    header = np.fromfile(path, dtype="<i4", count=256)
    ids = np.fromfile(path, dtype="<u2", offset=1024)
    assert header[:3].tolist() == [20240520, 1, len(ids)]
    assert ids[0] == 1
