"""The packed script: alone it scores and trains as pgolf does; what is in it, how large it is, and what guards it."""

import argparse
import ast
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import QUICK, TECHNIQUES, flip, run_here, stray_files, technique_sets
from warm import run_warm

import pgolf as package
from pgolf.audit.program import can_isolate
from pgolf.bundle.graph import CORE, parse_core
from pgolf.bundle.script import INFO, Script, build_script, program, ships, unpack
from pgolf.catalog import CATALOG
from pgolf.config.load import preset_names, resolve
from pgolf.config.tree import to_values
from pgolf.core.codecs.adaptive import Rans
from pgolf.core.errors import RuleError
from pgolf.core.quant.gptq_lqer import Lqer
from pgolf.core.submit import Submission, score_submission
from pgolf.stages.model_files import artifact_info, load_model

ROOT = Path(package.__file__).parent
LAZY = {"sentencepiece", "safetensors", "brotli", "zstandard", "flash_attn", "flash_attn_interface", "triton"}
PROVED = {"identical": True, "isolated": True, "network": not can_isolate()}
GUARD = """
import sys
class NoPgolf:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pgolf":
            raise SystemExit("the script imports " + name)
sys.meta_path.insert(0, NoPgolf())
if any(name.split(".")[0] == "pgolf" for name in sys.modules):
    raise SystemExit("pgolf is there before the script")
sys.argv = sys.argv[1:]
source = open(sys.argv[0], "rb").read()
names = {"__name__": "__main__", "__file__": sys.argv[0]}
exec(compile(source, sys.argv[0], "exec"), names)
"""


def room(run: Path, place: Path, *splits: str) -> Path:
    """A directory with the script, the artifact, the tokenizer and shards, and nothing else."""
    (place / "data").mkdir(parents=True)
    for name in ("train_gpt.py", "model.pgz", "tokenizer.model"):
        shutil.copy(run / "submission" / name, place / name)
    for split in splits:
        for path in (run / "data").glob(f"fineweb_{split}_*.bin"):
            shutil.copy(path, place / "data" / path.name)
    return place


def alone(place: Path, *argv: str, code: int = 0, environment: dict[str, str] | None = None) -> str:
    """Run the script in its room, where pgolf cannot be imported."""
    line = ["train_gpt.py", "--data", "data", "--tokenizer", "tokenizer.model", *argv]
    done = run_warm(GUARD, line, place, {"OMP_NUM_THREADS": "1"} | (environment or {}))
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout if code == 0 else done.stderr


def result(text: str) -> dict[str, Any]:
    """The JSON document on the script's last line."""
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found


def claimed(run: Path, stage: str = "eval") -> dict[str, Any]:
    """The score pgolf wrote."""
    found: dict[str, Any] = json.loads((run / stage / "score.json").read_text())["score"]
    return found


def test_the_script_alone_scores_to_the_last_bit(tiny_run: Path, tmp_path: Path) -> None:
    place = room(tiny_run, tmp_path / "an empty room", "val")
    text = alone(place, "--artifact", "model.pgz")
    found = result(text)
    assert found["score"] == claimed(tiny_run)
    total = sum((place / name).stat().st_size for name in ("train_gpt.py", "model.pgz"))
    assert found["artifact_bytes"] + found["code_bytes"] == total
    assert f"Total submission size: {total} bytes" in text
    assert sorted(path.name for path in place.iterdir()) == ["data", "model.pgz", "tokenizer.model", "train_gpt.py"]


def test_the_script_runs_as_the_readme_says(tiny_run: Path, tmp_path: Path) -> None:
    place = room(tiny_run, tmp_path / "room", "val")
    readme = (tiny_run / "submission" / "README.md").read_text()
    line = next(line.strip() for line in readme.splitlines() if "--artifact" in line)
    words = [sys.executable if word == "python" else "data" if word == "DATA" else word for word in line.split()]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert result(done.stdout)["score"] == claimed(tiny_run)


def test_the_script_claims_the_score_after_test_time_training(pgolf: Any, copy_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "ttt submission"
    argv = ["package-submission", copy_run / "compress" / "model.pgz", "--out", out, "--set", "package.claim=ttt"]
    document = pgolf(*argv, "--quiet", "--json").good().document
    assert document["val_bpb"] == claimed(copy_run, "ttt")["bpb"] != claimed(copy_run)["bpb"]
    assert document["proof"]["1337"] == PROVED | {"bpb": document["val_bpb"]}
    assert "ChunkTtt" in (out / "train_gpt_readable.py").read_text()


@pytest.mark.parametrize(
    ("sets", "present"),
    [
        pytest.param(["method=lora", "chunk_tokens=32", "rank=4"], {"LoraTtt", "AdaptedGPT"}, marks=pytest.mark.slow),
        (
            [
                *("method=phased", "chunk_tokens=32", "rank=4", "phases=1", "prefix_docs=2"),
                *("base.chunk_tokens=128", "base.optimizer=muon", "base.epochs=2"),
            ],
            {"PhasedTtt", "AdaptedGPT", "TttMuon"},
        ),
        pytest.param(["optimizer=adamw", "lr=0.001", "epochs=1"], {"ChunkTtt", "TttAdamW"}, marks=pytest.mark.slow),
    ],
    ids=["lora", "phased", "chunk"],
)
def test_the_script_adapts_to_the_last_bit_as_pgolf_does(
    pgolf: Any, copy_run: Path, tmp_path: Path, sets: list[str], present: set[str]
) -> None:
    chosen = [word for one in sets for word in ("--set", f"ttt.{one}")]
    artifact, out = copy_run / "compress" / "model.pgz", tmp_path / "ttt submission"
    pgolf(
        "ttt", artifact, "--data", copy_run / "data", "--out", copy_run / "ttt" / "score.json", "--quiet", *chosen
    ).good()
    argv = ["package-submission", artifact, "--out", out, "--set", "package.claim=ttt", *chosen]
    argv += ["--set", "package.prove_steps=1"]
    document = pgolf(*argv, "--quiet", "--json").good().document
    assert document["val_bpb"] == claimed(copy_run, "ttt")["bpb"] != claimed(copy_run)["bpb"]
    assert document["proof"]["1337"] == PROVED | {"bpb": document["val_bpb"]}
    assert present <= classes((out / "train_gpt_readable.py").read_text())


def test_the_script_has_no_ear_for_what_nobody_hears() -> None:
    readable = build_script(resolve("leader").config).readable
    assert "watch.log(" in readable and "watch.stop_asked()" in readable
    for hook in ("warmed", "phase", "gradients", "failed"):
        assert f"watch.{hook}" not in readable and f"def {hook}(" not in readable
        assert f"watch.{hook}(" in (CORE / "train" / "loop.py").read_text()


def test_training_with_the_script_makes_the_same_artifact(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    place = room(tiny_run, tmp_path / "room", "train", "val")
    (place / "model.pgz").unlink()
    found = result(alone(place, "--seed", "1337", "--out", "made/mine.pgz"))
    made = (place / "made" / "mine.pgz").read_bytes()
    assert made == (tiny_run / "compress" / "model.pgz").read_bytes()
    assert found["score"] == claimed(tiny_run)
    result(alone(place, "--seed", "7", "--out", "other.pgz"))
    assert (place / "other.pgz").read_bytes() != made


def test_the_script_trains_on_two_ranks(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    place = room(tiny_run, tmp_path / "room", "train", "val")
    sets = ["train.micro_batch_tokens=512", "train.val_every=0", "optim.parallel=banks", "optim.grad_clip=0.3"]
    (place / "train_gpt.py").write_bytes(build_script(resolve("tiny", sets).config).packed)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train_gpt.py"]
    line += ["--data", "data", "--tokenizer", "tokenizer.model", "--device", "cpu"]
    done = subprocess.run(line, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    argv = ["train", tiny_run / "data", "--out", tmp_path / "train", "--preset", "tiny", "--quiet"]
    pgolf(*argv, *(word for one in sets for word in ("--set", one)), "--gpus", 2, "--device", "cpu").good()
    lines = (tmp_path / "train" / "train.log").read_text().splitlines()
    (last,) = (line.split() for line in lines if line.startswith("20/20 train_loss: "))
    assert done.stdout.count(" ".join(last[:3])) == 1, "each rank has printed, or trained otherwise"
    assert done.stdout.count("final val_loss:") == 1
    assert result(alone(place, "--artifact", "model.pgz"))["score"] == result(done.stdout)["score"]


def test_the_script_plans_steps_and_searches_a_trellis_as_pgolf_does(
    pgolf: Any, copy_run: Path, tmp_path: Path
) -> None:
    """pgolf searches with compiled code, the script with what it has of its own, both in turn: the same artifact to the
    last bit.
    """
    curved = ("quant.steps=curvature", "quant.rounding=trellis", "quant.states=4", "quant.couple=rows")
    more = ("quant.sequential=true", "quant.bits_per_weight=4", "train.iterations=4", "package.prove=false")
    sets = [word for value in (*curved, *more) for word in ("--set", value)]
    argv = ("--out", copy_run, "--from", "train", *sets, "--until", "package", "--quiet")
    pgolf("run", *argv).good()
    place = room(copy_run, tmp_path / "room", "train", "val")
    found = result(alone(place, "--seed", "1337", "--out", "mine.pgz"))
    assert (place / "mine.pgz").read_bytes() == (copy_run / "compress" / "model.pgz").read_bytes()
    assert found["score"] == claimed(copy_run)


def test_the_script_collects_counts_and_scores_with_them_as_pgolf_does(
    pgolf: Any, copy_run: Path, tmp_path: Path
) -> None:
    """And tunes row scales by the same tokens."""
    counts = ("model.counts=ngrams", "model.counts.order=4", "model.counts.entries=300", "eval.cache=exact")
    tune = ("quant.tune=cross_entropy", "quant.tune.steps=3", "quant.tune.seqs=2", "quant.tune.seq_len=64")
    more = ("train.iterations=4", "package.prove=false")
    sets = [word for value in (*counts, *tune, *more) for word in ("--set", value)]
    pgolf("run", "--out", copy_run, "--from", "train", *sets, "--until", "package", "--quiet").good()
    place = room(copy_run, tmp_path / "room", "train", "val")
    found = result(alone(place, "--seed", "1337", "--out", "mine.pgz"))
    assert (place / "mine.pgz").read_bytes() == (copy_run / "compress" / "model.pgz").read_bytes()
    assert found["score"] == claimed(copy_run)
    cold = pgolf(
        "eval", place / "mine.pgz", "--data", copy_run / "data", "--set", "eval.cache.stored_share=0", "--json"
    )
    assert cold.good().document["score"]["nats"] != found["score"]["nats"]


def test_the_script_exports_as_pgolf_does_what_only_training_needs(pgolf: Any, copy_run: Path, tmp_path: Path) -> None:
    """Heads for later tokens are dropped and mixers of heads folded; the checkpoint keeps both."""
    parts = ("model.multi_token=mtp_heads", "model.head_mix=learned", "model.head_mix.values=true")
    more = ("train.iterations=12", "train.val_every=0", "optim.scalar_lr=0.5", "quant.method=gptq", "quant.max_gap=9")
    size = ("quant.calibration_seqs=8", "quant.calibration_seq_len=64", "package.prove_steps=1")
    sets = [word for value in (*parts, *more, *size) for word in ("--set", value)]
    pgolf("run", "--out", copy_run, "--from", "train", *sets, "--until", "package", "--quiet").good()
    trained, coded, artifact = (
        load_model(copy_run / name)
        for name in ("train/checkpoint.safetensors", "quantize/quantized.safetensors", "compress/model.pgz")
    )
    only = trained.weights.keys() - coded.weights.keys()
    assert {name.rpartition("attn.")[2] for name in only} == {
        *("mtp_heads.0.weight", "mtp_heads.1.weight", "q_mix", "k_mix", "v_mix")
    }
    assert artifact.weights.keys() == coded.weights.keys() == trained.exported().weights.keys()
    assert artifact.config.model == coded.config.model == trained.exported().config.model
    assert coded.stored["model"] == trained.stored["model"], "the script is made from it"
    mixer = trained.weights["blocks.0.attn.q_mix"]
    assert (mixer - torch.eye(len(mixer))).abs().max() > 0.05, "nothing to fold"
    entry = json.loads((copy_run / "quantize" / "manifest.json").read_text())["outputs"]["quantized.safetensors"]
    assert entry["figures"]["warnings"] == [] and abs(entry["figures"]["gap_bpb"]) < 0.2
    place = room(copy_run, tmp_path / "room", "train", "val")
    found = result(alone(place, "--seed", "1337", "--out", "mine.pgz"))
    assert (place / "mine.pgz").read_bytes() == (copy_run / "compress" / "model.pgz").read_bytes()
    assert found["score"] == claimed(copy_run)
    document = pgolf(
        *("eval", copy_run / "quantize" / "quantized.safetensors", "--data", copy_run / "data", "--quiet", "--json"),
        *("--set", "model.documents=by_document"),
    )
    assert document.good().document["model"]["overridden"]
    exact = pgolf("eval", copy_run / "train" / "checkpoint.safetensors", "--data", copy_run / "data", "--json").good()
    assert abs(exact.document["score"]["bpb"] - found["score"]["bpb"]) < 0.2


def test_the_script_quantizes_by_role_as_pgolf_does(pgolf: Any, copy_run: Path, tmp_path: Path) -> None:
    """Three values, GPTQ, a trellis and float8 in one script, trained, quantized and tuned by itself."""
    mixed = ("quant.method=by_role", "quant.mlp.method=ternary", "quant.mlp.group=32", "quant.embed.method=fp8")
    size = ("quant.attn.calibration_seqs=8", "quant.attn.calibration_seq_len=64", "quant.head.method=float")
    size += ("quant.attn.sequential=true",)
    more = ("quant.attn.rounding=trellis", "quant.attn.states=4", "quant.max_gap=0", "train.iterations=4")
    more += ("package.prove=false",)
    tune = ("quant.tune=kl", "quant.tune.steps=3", "quant.tune.seqs=2", "quant.tune.seq_len=64")
    sets = [word for value in (*mixed, *size, *more, *tune) for word in ("--set", value)]
    pgolf("run", "--out", copy_run, "--from", "train", *sets, "--until", "package", "--quiet").good()
    place = room(copy_run, tmp_path / "room", "train", "val")
    found = result(alone(place, "--seed", "1337", "--out", "mine.pgz"))
    assert (place / "mine.pgz").read_bytes() == (copy_run / "compress" / "model.pgz").read_bytes()
    assert found["score"] == claimed(copy_run)


@pytest.mark.parametrize(
    "sets",
    [
        ("quant.method=lqer", "quant.gates=int8_rows", "quant.sweeps=2", "quant.refit=true", "model.head_gate=dense"),
        ("quant.method=ternary", "quant.group=128", "quant.max_gap=0"),
    ],
    ids=["lqer", "ternary"],
)
def test_the_script_quantizes_as_pgolf_does(pgolf: Any, copy_run: Path, tmp_path: Path, sets: tuple[str, ...]) -> None:
    """Sweeps, a refit, gates beside corrections; groups that are wider than the rows."""
    more = ("quant.bits=4", "quant.k=7") if "quant.method=lqer" in sets else ()
    whole = [word for one in (*sets, *more, "train.iterations=4", "package.prove=false") for word in ("--set", one)]
    pgolf("run", "--out", copy_run, "--from", "train", *whole, "--until", "package", "--quiet").good()
    place = room(copy_run, tmp_path / "room", "train", "val")
    found = result(alone(place, "--seed", "1337", "--out", "mine.pgz"))
    assert (place / "mine.pgz").read_bytes() == (copy_run / "compress" / "model.pgz").read_bytes()
    assert found["score"] == claimed(copy_run)


def test_the_script_refuses_damaged_files(tiny_run: Path, tmp_path: Path) -> None:
    place = room(tiny_run, tmp_path / "room", "val")
    blob = (place / "model.pgz").read_bytes()
    for damaged in (blob[:7], blob[:-1], blob[:20] + b"!" + blob[21:], b"", bytes(40)):
        (place / "other.pgz").write_bytes(damaged)
        assert "error:" in alone(place, "--artifact", "other.pgz", code=3)
    for sets in (["model.num_layers=3"], ["model.mlp.mult=3"], ["compress=zlib"]):
        (place / "train_gpt.py").write_bytes(build_script(resolve("tiny", sets).config).packed)
        assert "error:" in alone(place, "--artifact", "model.pgz", code=3)
    flip(place / "model.pgz", 5000)
    assert "error:" in alone(place, "--artifact", "model.pgz", code=3)
    assert "no such file" in alone(place, "--artifact", "absent.pgz", code=3)
    shard = next(place.glob("data/*_val_*"))
    for damaged in (shard.read_bytes()[:-1], shard.read_bytes()[:100], b"?" + shard.read_bytes()[1:]):
        shard.write_bytes(damaged)
        assert "not a whole token shard" in alone(place, "--artifact", "model.pgz", code=3)


@pytest.fixture(scope="module")
def script() -> Script:
    """The script of preset tiny."""
    return build_script(resolve("tiny").config)


def test_the_script_knows_nothing_of_pgolf(script: Script) -> None:
    for source in (script.readable, script.minified):
        assert "pgolf." not in source
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "pgolf"]
    assert unpack(script.packed) == script.minified


def classes(source: str) -> set[str]:
    """Names of the classes a source defines."""
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize(
    ("sets", "present", "absent"),
    [
        (
            [],
            {"Gptq", "Brotli", "SlidingEval", "FractionWarmdown"},
            {"RowQuantile", "Zlib", "Lzma", "Zstd", "ChunkTtt", "StepTensor", "Calibration", "Planned", "CurvatureTap"},
        ),
        (["quant=row_quantile", "compress=zlib"], {"RowQuantile", "Zlib"}, {"Gptq", "SdClip", "Brotli", "Zstd"}),
        (["compress=zstd", "quant=sdclip"], {"Zstd", "SdClip"}, {"Brotli", "Gptq", "RowQuantile"}),
        (["model.counts=ngrams", "eval.cache=exact"], {"NgramCounts", "AdjustedLedger"}, {"TokenTilt"}),
        (["eval.cache=exact", "eval.compiler=torch"], {"TorchCompile", "ExactCache"}, {"NgramCounts", "TokenTilt"}),
        (["quant.steps=curvature"], {"StepTensor", "Planned", "CurvatureTap"}, {"TrellisTensor", "HessianTap"}),
        (["quant.rounding=trellis"], {"TrellisTensor", "CurvatureTap"}, {"HessianTap"}),
        (["eval=plain", "model.embed=untied"], {"PlainEval", "UntiedEmbed"}, {"SlidingEval", "ChunkTtt", "TiedEmbed"}),
        (["package.claim=ttt", "optim.warmdown=iterations"], {"ChunkTtt", "IterationWarmdown"}, {"FractionWarmdown"}),
    ],
)
def test_only_what_the_run_needs_is_in_the_script(sets: list[str], present: set[str], absent: set[str]) -> None:
    from pgolf.bundle.script import emit

    source, _ = emit(resolve("tiny", sets).config, "{}")
    found = classes(source)
    assert present <= found and not absent & found
    for word, name in (("brotli", "Brotli"), ("zstandard", "Zstd")):
        assert (re.search(rf"\bimport {word}\b", source) is not None) == (name in found)


def test_variants_of_the_optimizers_are_in_the_script_that_asks_for_them() -> None:
    from pgolf.bundle.script import emit

    asked = ("matrix=normuon", "matrix.iteration=gram", "matrix.paired_heads=true", "matrix.cautious_decay=true")
    asked += ("lr_scale=by_role", "decay_schedule=ramp", "adam_every=2", "clip_mode=adaptive", "grad_clip=1")
    plain, _ = emit(resolve("tiny").config, "{}")
    every, _ = emit(resolve("tiny", [f"optim.{one}" for one in asked]).config, "{}")
    for word in (
        "NorMuon",
        "gram_newton_schulz",
        "shape[0] * blocks",
        "RateByRole",
        "RampDecay",
        "adam_every",
        "caution",
    ):
        assert word in every and word not in plain, word
    compile(every, "every", "exec")


def test_fields_that_nothing_reads_are_not_in_the_script(script: Script) -> None:
    tree = ast.parse(script.readable)
    (recipe,) = (node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets) == "RECIPE")
    given = {word.arg for word in ast.walk(recipe) if isinstance(word, ast.keyword)}
    assert {"keep_checkpoints", "needs_gpu", "head_gate"}.isdisjoint(given)
    assert {"iterations", "lr", "qk_gain", "loop"} <= given
    (submission,) = (ast.unparse(node) for node in tree.body if ast.unparse(node).startswith("RECIPE"))
    assert "budget_seconds" not in submission and "max_tokens" in submission
    (train,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainConfig")
    assert not [item for item in train.body if isinstance(item, ast.AnnAssign)] and not train.decorator_list


@pytest.mark.parametrize(
    ("sets", "present"),
    [
        ([], set()),
        (["model.documents=by_document"], {"by_flex"}),
        (["model.num_layers=6", "model.window=sliding", "model.window.tokens=16"], {"by_flex"}),
        (["train.attention=flex"], {"by_flex"}),
        (["train.attention=reference"], {"by_reference"}),
    ],
)
def test_the_script_knows_the_ways_of_attention_it_may_take(sets: list[str], present: set[str]) -> None:
    from pgolf.bundle.script import emit

    source, _ = emit(resolve("tiny", sets).config, "{}")
    found = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    assert found & {"by_reference", "by_flex"} == present
    assert {"by_sdpa", "by_flash"} <= found


def test_kernels_are_in_the_script_that_asks_for_them() -> None:
    from pgolf.bundle.script import emit

    for kernels in ("auto", "eager", "triton"):
        source, _ = emit(resolve("tiny", [f"train.kernels={kernels}"]).config, "{}")
        found = classes(source)
        assert ("FusedGPT" in found) == ("triton.jit" in source) == (kernels == "triton")


def test_the_trellis_kernel_is_in_the_script_that_asks_for_it() -> None:
    from pgolf.bundle.script import emit

    by_role = ["quant=by_role", "quant.mlp.rounding=trellis", "quant.attn.rounding=trellis"]
    for sets, asking in (
        (["quant.rounding=trellis"], "quant.search=triton"),
        (["quant=lqer", "quant.rounding=trellis"], "quant.search=triton"),
        (by_role, "quant.mlp.search=triton"),
    ):
        plain, _ = emit(resolve("tiny", sets).config, "{}")
        assert "triton.jit" not in plain and "OTHER_SEARCHES" not in plain and "search='torch'" not in plain
        source, _ = emit(resolve("tiny", [*sets, asking]).config, "{}")
        assert source.count("triton.jit") == 1 and "search='triton'" in source
        compile(source, "readable", "exec")


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which pgolf[kernels] installs"
)


@needs_triton
def test_triton_finds_the_source_of_kernels_in_a_packed_script(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_bytes(build_script(resolve("tiny", ["train.kernels=triton"]).config).packed)
    code = """if True:
        import sys
        names = {"__name__": "train_gpt"}
        exec(compile(open(sys.argv[1], "rb").read(), sys.argv[1], "exec"), names)
        for kernel in (*names["nll_kernels"](), names["mlp_kernel"]()):
            print(kernel.src.startswith("def "), *(one.name for one in kernel.params if one.is_constexpr))
    """
    line = [sys.executable, "-I", "-c", code, str(tmp_path / "train_gpt.py")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n") == ["True BLOCK", "True BLOCK", "True BACKWARD ROWS COLUMNS DEPTH", ""], done.stderr


@needs_triton
def test_the_trellis_kernel_runs_from_the_packed_script(tiny_run: Path, tmp_path: Path) -> None:
    """Queries and keys along a trellis: the same artifact as with the script's own search in torch."""
    place = room(tiny_run, tmp_path / "room", "train", "val")
    sets = ["train.iterations=2", "train.val_every=0", "eval=plain", "eval.max_tokens=512", "quant=by_role"]
    sets += [
        "quant.attn.rounding=trellis",
        "quant.attn.states=8",
        "quant.mlp.method=sdclip",
        "quant.embed.method=sdclip",
    ]
    sets += ["quant.attn.calibration_seqs=8", "quant.attn.calibration_seq_len=64", "quant.head.method=sdclip"]
    hashes = []
    for search in ("torch", "triton"):
        config = resolve("tiny", [*sets, f"quant.attn.search={search}"]).config
        (place / "train_gpt.py").write_bytes(build_script(config).packed)
        argv = ("--out", f"{search}.pgz", "--device", "cpu")
        alone(place, *argv, environment={"TRITON_INTERPRET": "1"})
        hashes.append(hashlib.sha256((place / f"{search}.pgz").read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]
    assert "triton needs a CUDA device" in alone(place, *argv, code=5), "the kernel was not asked for"


@needs_triton
@pytest.mark.slow
def test_kernels_run_from_the_packed_script(tiny_run: Path, tmp_path: Path) -> None:
    place = room(tiny_run, tmp_path / "room", "train", "val")
    losses = []
    for kernels in ("triton", "eager"):
        sets = ["train.iterations=2", "train.val_every=0", "eval=plain", "eval.max_tokens=512"]
        config = resolve("tiny", [*sets, f"train.kernels={kernels}"]).config
        (place / "train_gpt.py").write_bytes(build_script(config).packed)
        argv = ("--out", f"{kernels}.pgz", "--device", "cpu")
        text = alone(place, *argv, environment={"TRITON_INTERPRET": "1"})
        losses.append(result(text)["score"]["val_loss"])
        if kernels == "triton":
            assert "triton needs a CUDA device" in alone(place, *argv, code=5), "the kernels were not asked for"
    assert abs(losses[0] - losses[1]) < 1e-3


def test_the_script_misses_what_its_search_needs_before_it_trains(tiny_run: Path, tmp_path: Path) -> None:
    place = room(tiny_run, tmp_path / "room", "train", "val")
    sets = ["quant.method=by_role", "quant.mlp.rounding=trellis", "quant.mlp.search=triton"]
    config = resolve("tiny", [*sets, "train.iterations=1000000", "train.val_every=0"]).config
    (place / "train_gpt.py").write_bytes(build_script(config).packed)
    assert "quant.search" in alone(place, "--device", "cpu", code=5)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_bundles(preset: str) -> None:
    config = resolve(preset).config
    script = build_script(config)
    compile(script.readable, "readable", "exec")
    compile(unpack(script.packed), "packed", "exec")
    size = len(script.packed)
    if isinstance(config.compress, Rans):
        assert size < (22_400 if preset == "quant_in_turn" else 20_400)
        config = resolve(preset, ["compress.method=brotli"]).config
        size = len(build_script(config).packed)
    print(f"{preset}: {size:,} bytes packed, {len(script.minified):,} minified, {len(script.readable):,} readable")
    small = {"baseline_sp1024": 12_000, "demo": 12_800, "tiny": 12_800}
    small |= {"quant_coupled": 15_600, "quant_in_turn": 18_200}
    if isinstance(config.quant, Lqer):
        assert size < 16_000
        size = len(build_script(replace(config, quant=resolve(preset, ["quant.method=gptq"]).config.quant)).packed)
    assert size < small.get(preset, 15_100)


@pytest.mark.parametrize(
    ("sets", "keys", "trials"),
    [
        (
            ["gptq"],
            ["quant.", "quant.embed.", "quant.mlp."],
            [(2.5, 0.001234, 12.0), (12345.5, 0.5, 1e-05), (7, 0.25, 9)],
        ),
        (["by_role", "quant.mlp.steps=curvature"], ["quant.mlp.", "quant.attn."], [(3.0, 3.0), (11.5, 11.5)]),
        (["sdclip"], ["quant."], [(0.75,), (0.125,), (1.0,)]),
    ],
)
def test_programs_of_other_steps_are_one_program(sets: list[str], keys: list[str], trials: list[Any]) -> None:
    """A solver that tries factor after factor packs each script but makes it once; it is the one that it would have
    made for that factor alone.
    """
    config = resolve("tiny", [f"quant.method={sets[0]}", *sets[1:], "train.iterations=77"]).config
    before = program.cache_info().misses
    scripts = list[tuple[Any, Script]]()
    for values in trials:
        given = [f"{key}theta={value}" for key, value in zip(keys, values, strict=True)]
        one = replace(config, quant=resolve(stored=to_values(config), sets=given).config.quant)
        scripts.append((one, build_script(one, "info")))
    made = program.cache_info().misses - before
    assert made == len({tuple(value == 1 for value in values) for values in trials})
    assert len({script.packed for _, script in scripts}) == len(trials)
    one, script = scripts[-2]
    readable, minified, _ = program(one)
    assert script.minified == minified.replace(repr(INFO), "'info'")
    assert script.readable == readable.replace(repr(INFO), "'info'")


@pytest.mark.parametrize(
    ("preset", "codec", "most"),
    [("baseline_sp1024", "zlib", 12_000), ("leader", "brotli", 16_400), ("leader", "rans", 20_800)],
)
def test_a_submission_counts_what_its_artifact_says_of_itself(preset: str, codec: str, most: int) -> None:
    """The size of the script as it is uploaded."""
    config = resolve(preset, [f"compress.method={codec}"]).config
    info = artifact_info(config, hashlib.sha256(b"tokenizer").hexdigest())
    assert len(build_script(config, info.decode()).packed) < most


@pytest.mark.slow
@pytest.mark.parametrize("choice", TECHNIQUES, ids="-".join)
def test_every_technique_does_in_its_script_what_it_does_in_core(
    choice: tuple[str, str], tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four steps, the artifact, and a score, to the last bit."""
    short = ["train.iterations=4", "train.val_every=0", "eval.max_tokens=512", "ttt.max_tokens=512"]
    chosen = technique_sets(*choice)
    claim = ["package.claim=ttt"] if chosen[0].startswith("ttt") else []
    config = resolve("tiny", [*short, *claim, *chosen]).config
    if not ships(config):
        with pytest.raises(RuleError, match="no script carries"):
            build_script(config)
        return
    place = room(tiny_run, tmp_path / "room", "train", "val")
    (place / "train_gpt.py").write_bytes(build_script(config).packed)
    compilers = {"PATH": os.environ["PATH"]}  # which torch.compile looks for
    found = result(alone(place, "--out", "made.pgz", "--device", "cpu", environment=compilers))
    assert math.isfinite(found["score"]["val_loss"])
    sections = {name: getattr(config, name) for name in ("model", "optim", "train", "quant", "compress")}
    recipe = Submission(**sections, score=getattr(config, config.package.claim), info="")
    paths = {"data": place / "data", "tokenizer": place / "tokenizer.model", "out": tmp_path / "core.pgz"}
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    try:
        score_submission(
            recipe,
            place / "train_gpt.py",
            argparse.Namespace(**paths, seed=config.train.seed, artifact=None, device="cpu"),
        )
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)
    assert result(capsys.readouterr().out) == found


def test_the_script_chooses_among_averages(tiny_run: Path, tmp_path: Path) -> None:
    place = room(tiny_run, tmp_path / "room", "train", "val")
    sets = ["train.average=emas", "train.average.decays=0.5,0.9", "train.average.tokens=3000", "train.val_every=0"]
    config = resolve("tiny", [*sets, "train.iterations=6", "eval.max_tokens=512"]).config
    (place / "train_gpt.py").write_bytes(build_script(config).packed)
    text = alone(place, "--out", "made.pgz", "--device", "cpu")
    assert math.isfinite(result(text)["score"]["val_loss"])


def test_what_scripts_make_plain_is_given_its_values_by_name() -> None:
    """Classes of recipes, and those that inherit from what recipes' classes inherit from, have no fields there."""
    from pgolf.bundle.script import with_bases

    core = parse_core()
    places = (where.partition(":") for names in CATALOG.values() for where in names.values())
    chosen = frozenset(name for module, _, name in places if module.startswith("pgolf.core."))
    plain = with_bases(core, chosen)
    assert "Part" in plain and "Horizon" not in plain
    calls = [node for one in core.order for node in ast.walk(one.node) if isinstance(node, ast.Call) and node.args]
    made = {call.func.id for call in calls if isinstance(call.func, ast.Name) and call.func.id in core.definitions}
    nodes = {name: core.definitions[name].node for name in made}
    classes = {name: node for name, node in nodes.items() if isinstance(node, ast.ClassDef)}
    fields = [
        name
        for name, node in classes.items()
        if not any(isinstance(item, ast.FunctionDef) and item.name == "__init__" for item in node.body)
    ]
    assert len(fields) > 20 and [name for name in fields if with_bases(core, frozenset({name})) & plain] == []


def imports(node: ast.stmt) -> list[str]:
    """Top-level packages an import statement names; pgolf's modules in full."""
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        return [str(node.module)]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


CORE_FILES = [path for path in sorted(CORE.rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_core_modules_keep_the_import_rules(path: Path) -> None:
    module = ast.parse(path.read_text())
    top = {id(node) for node in module.body}
    for node in ast.walk(module):
        for name in imports(node) if isinstance(node, ast.stmt) else []:
            root = name.split(".")[0]
            assert root != "__future__", "__future__ would not survive the bundling"
            if root == "pgolf":
                assert name.startswith("pgolf.core"), name
            elif root in LAZY:
                assert id(node) not in top, f"{name} is imported at the top"
            else:
                assert root in sys.stdlib_module_names or root in ("torch", "numpy"), name
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), "star import"


def test_core_names_are_unique() -> None:
    core = parse_core()
    assert len(core.order) > 100
    names = [name for definition in core.order for name in definition.names]
    assert len(names) == len(set(names))


def test_a_name_defined_twice_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pgolf.bundle import graph
    from pgolf.core.errors import PgolfError

    (tmp_path / "a.py").write_text("def twice():\n    return 1\n")
    (tmp_path / "b.py").write_text("def twice():\n    return 2\n")
    monkeypatch.setattr(graph, "CORE", tmp_path)
    with pytest.raises(PgolfError, match="twice"):
        graph.parse_core.__wrapped__()


LIGHT = sorted({where.partition(":")[0] for slot in CATALOG.values() for where in slot.values()})


def test_techniques_do_not_import_torch() -> None:
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "assert 'torch' not in sys.modules, 'torch'\nassert 'numpy' not in sys.modules, 'numpy'"
    done = subprocess.run([sys.executable, "-c", code, *LIGHT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def package_again(run: Path, out: Path, *more: object) -> Any:
    """package-submission on a run's artifact, whose training is proved elsewhere."""
    argv = ("package-submission", run / "compress" / "model.pgz", "--out", out, "--set", "package.prove_steps=0")
    return run_here(*argv, "--quiet", *more)


def test_exactly_the_cap_is_accepted_and_one_byte_more_is_not(copy_run: Path, tmp_path: Path) -> None:
    total = json.loads((copy_run / "submission" / "submission.json").read_text())["total_bytes"]
    below = package_again(copy_run, tmp_path / "below", "--set", f"package.cap_bytes={total + 1}", "--json")
    assert below.good().document["headroom_bytes"] == 1
    equal = package_again(copy_run, tmp_path / "equal", "--set", f"package.cap_bytes={total}", "--json")
    assert equal.good().document["headroom_bytes"] == 0
    sizes = [(tmp_path / "equal" / name).stat().st_size for name in ("train_gpt.py", "model.pgz")]
    assert sum(sizes) == total
    over = package_again(copy_run, tmp_path / "over", "--set", f"package.cap_bytes={total - 1}")
    line = over.refused(4, f"{total:,} bytes", f" 1 over the cap of {total - 1:,}")
    assert "quant" in line and "compress" in line
    assert not (tmp_path / "over").exists() and stray_files(tmp_path) == []


def test_a_run_over_the_cap_ends_with_4_and_keeps_its_files(pgolf: Any, copy_run: Path, corpus: Path) -> None:
    total = json.loads((copy_run / "submission" / "submission.json").read_text())["total_bytes"]
    argv = ["run", *QUICK, "--text", corpus, "--out", copy_run, "--set", f"package.cap_bytes={total - 100}"]
    result = pgolf(*argv)
    result.refused(4, "100 over the cap")
    assert "warning:" in result.err and (copy_run / "compress" / "model.pgz").is_file()


def test_a_false_claim_is_not_packaged(copy_run: Path, tmp_path: Path) -> None:
    path = copy_run / "eval" / "score.json"
    document = json.loads(path.read_text())
    document["score"]["nats"] *= 0.99
    document["score"]["bpb"] *= 0.99
    path.write_text(json.dumps(document))
    package_again(copy_run, tmp_path / "false").refused(4, "the script scores", "the claim is")
    left = [item.name for item in tmp_path.iterdir() if item.name != "run" and item.suffix != ".lock"]
    assert left == []


ADJUSTED = {
    "documents": ["eval.method=document", "eval.stride=32", "eval.rope=yarn", "eval.rope.trained=64"],
    "overlap": ["eval.method=overlap", "eval.rope=ntk", "eval.rope.trained=32"],
    "longer": ["eval.seq_len=128", "eval.rope=ntk"],
    "tempered": [
        *("package.claim=ttt", "ttt.method=lora", "ttt.rank=4", "ttt.chunk_tokens=32", "ttt.max_tokens=0"),
        *("ttt.temperature=fixed", "ttt.batch_seqs=16"),
    ],
    "learning": ["eval.method=plain", "eval.bias=online", "eval.bias.chunk_tokens=900", "eval.mixer=hedge"],
    "tuned": [
        "eval.temperature=fixed",
        "eval.slot=lbfgs",
        "eval.slot.iterations=2",
        "eval.stride=60",
        "eval.cache=exact",
        "eval.tilt=token",
    ],
}


@pytest.mark.parametrize("name", ADJUSTED)
def test_the_script_adjusts_as_pgolf_does(copy_run: Path, tmp_path: Path, name: str) -> None:
    sets = [word for text in ADJUSTED[name] for word in ("--set", text)]
    document = package_again(copy_run, tmp_path / "out", *sets, "--json").good().document
    assert document["proof"]["1337"] == PROVED | {"bpb": document["val_bpb"]}
    assert document["val_bpb"] != claimed(copy_run)["bpb"]
    readable = (tmp_path / "out" / "train_gpt_readable.py").read_text()
    used = {word.partition("=")[2] for word in ADJUSTED[name]}
    classes = {
        "fixed": "FixedTemperature",
        "online": "OnlineBias",
        "hedge": "HedgeMixer",
        "lbfgs": "SlotLbfgs",
        "exact": "ExactCache",
    }
    for kind, cls in (
        classes | {"token": "TokenTilt", "yarn": "YarnRope", "ntk": "NtkRope", "document": "DocumentEval"}
    ).items():
        assert (f"class {cls}" in readable) == (kind in used), cls


def test_no_trace_of_adjusters_where_there_are_none() -> None:
    readable = build_script(resolve("leader").config).readable
    for word in ("AdjustedLedger", "Adjustment", "Unadjusted", "RopeAsTrained", "adjusters", "watch.recalled"):
        assert word not in readable


def test_a_partial_score_is_not_packaged(copy_run: Path, tmp_path: Path) -> None:
    run_here("eval", copy_run / "compress" / "model.pgz", "--data", copy_run / "data", "--quiet", "--out",
             copy_run / "eval" / "score.json", "--set", "eval.max_tokens=500").good()  # fmt: skip
    package_again(copy_run, tmp_path / "partial", "--set", "eval.max_tokens=500").refused(4, "eval.max_tokens=0")
    assert not (tmp_path / "partial").exists()


def test_an_existing_folder_is_kept_unless_forced(copy_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "my records"
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    package_again(copy_run, out).refused(3, "--force")
    assert [path.name for path in out.iterdir()] == ["diary.txt"]
    package_again(copy_run, out, "--force").good()
    assert (out / "train_gpt.py").is_file() and stray_files(tmp_path) == []
    assert package_again(copy_run, out, "--json").good().document["fresh"] is True
    package_again(copy_run, out, "--name", "another title").refused(3, "--force")


def test_several_seeds_make_one_folder(pgolf: Any, copy_run: Path, tmp_path: Path) -> None:
    data, artifacts = copy_run / "data", [copy_run / "compress" / "model.pgz"]
    other = tmp_path / "seed 7"
    pgolf("train", data, "--out", other / "train", "--preset", "tiny", "--seed", "7", "--quiet").good()
    pgolf(
        "quantize", other / "train" / "checkpoint.safetensors", "--data", data, "--out", other / "q.safetensors"
    ).good()
    artifacts.append(other / "compress" / "model.pgz")
    pgolf("compress", other / "q.safetensors", "--out", artifacts[1]).good()
    out = tmp_path / "both"
    argv = ["package-submission", *artifacts, "--out", out, "--data", data, "--quiet", "--json"]
    document = pgolf(*argv).good().document
    assert document["seeds"] == [1337, 7] and set(document["proof"]) == {"1337", "7", "training"}
    bpbs = [row["val_bpb"] for row in document["seed_results"].values()]
    assert document["val_bpb"] == pytest.approx(sum(bpbs) / 2) and document["val_bpb_std"] > 0
    sizes = [(out / f"model_seed{seed}.pgz").stat().st_size for seed in (1337, 7)]
    assert document["artifact_bytes"] == max(sizes)
    assert document["total_bytes"] == max(sizes) + (out / "train_gpt.py").stat().st_size
    twice = pgolf("package-submission", artifacts[0], artifacts[0], "--out", tmp_path / "twice", "--quiet")
    twice.refused(3, "1337")


def test_places_where_no_part_acts_are_not_in_the_script() -> None:
    from pgolf.bundle.script import emit

    plain, _ = emit(resolve("tiny").config, "{}")
    looped, _ = emit(resolve("tiny", ["model.loop=layers", "model.loop.start=0", "model.loop.end=0"]).config, "{}")
    smeared, _ = emit(resolve("tiny", ["model.smear=gated"]).config, "{}")
    for place, source in (("embedded", smeared), ("LaterPass", looped)):
        assert place in source and place not in plain
    assert "for part in self.parts" in smeared and "for part in self.parts" not in plain
