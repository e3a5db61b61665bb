"""Scripts of the presets, alone: the twins train, quantize and compress to pgolf's own artifact, and the full leader
takes steps.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pgolf.bundle.script import build_script
from pgolf.config.load import preset_names, resolve
from pgolf.core.errors import RuleError
from pgolf.dataset import open_dataset
from pgolf.submission import proof

TWINS = [name for name in preset_names() if name.endswith("_tiny")]


@pytest.mark.parametrize("preset", TWINS)
def test_a_twin_trains_alone_to_pgolfs_artifact(preset: str, tiny_run: Path) -> None:
    config = resolve(preset, ["model.vocab_size=512", "package.prove_steps=2"]).config
    found = proof.prove_training(config, open_dataset(tiny_run / "data"), "cpu")
    assert (found["steps"], found["identical"]) == (2, True)


def test_a_script_that_trains_otherwise_is_found(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, dataset = resolve("tiny", ["package.prove_steps=2"]).config, open_dataset(tiny_run / "data")
    real = proof.run_alone

    def other(room: Path, argv: list[str], device: str) -> str:
        text = real(room, argv, device)
        return re.sub(r"^(2/\d+ train_loss: )(\d)", lambda match: f"{match[1]}{int(match[2]) - 1}", text, flags=re.M)

    monkeypatch.setattr(proof, "run_alone", other)
    with pytest.raises(RuleError, match=r"trains otherwise than pgolf: loss .* at step 2"):
        proof.prove_training(config, dataset, "cpu")


def test_the_full_leader_starts_alone_and_takes_three_steps(tiny_run: Path) -> None:
    rows = ["train.seq_len=64", "train.batch_tokens=64", "train.micro_batch_tokens=64", "package.prove_steps=3"]
    config = proof.shortened(resolve("leader", rows).config)
    dataset = open_dataset(tiny_run / "data")
    files = {"train_gpt.py": build_script(config, "{}").packed, "tokenizer.model": dataset.tokenizer_bytes}
    argv = ["train_gpt.py", "--data", "data", "--tokenizer", "tokenizer.model", "--device", "cpu"]
    with proof.empty_room(files, dataset, ("train", "val")) as room:
        line = [sys.executable, "-I", *argv]
        seen: list[str] = []
        with subprocess.Popen(line, cwd=room, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for text in process.stdout or ():
                seen.append(text)
                if text.startswith("3/3 train_loss: "):
                    break
            process.kill()
    assert "model_params:35945671\n" in seen and seen[-1].startswith("3/3 train_loss: "), "".join(seen)
