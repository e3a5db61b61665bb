"""run: every stage in order, each fresh one skipped, everything below one directory."""

import importlib.util
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgolf.accounting import bpb_of
from pgolf.catalog import name_of
from pgolf.config.load import Resolved
from pgolf.core.errors import ConfigError, InputError, PgolfError, RuleError, SetupError, StorageError
from pgolf.core.files import free_bytes, try_writing
from pgolf.report.console import Console
from pgolf.sizing import parameters, predict

STAGES = ("tokenize", "train", "quantize", "compress", "eval", "ttt", "package")
CODEC_PACKAGES = {"brotli": "brotli", "zstd": "zstandard"}


@dataclass(frozen=True)
class Layout:
    """Where a run keeps what."""

    root: Path

    @property
    def data(self) -> Path:
        """The dataset directory."""
        return self.root / "data"

    @property
    def checkpoint(self) -> Path:
        """The trained float model."""
        return self.root / "train" / "checkpoint.safetensors"

    @property
    def quantized(self) -> Path:
        """The quantized model."""
        return self.root / "quantize" / "quantized.safetensors"

    @property
    def artifact(self) -> Path:
        """The artifact."""
        return self.root / "compress" / "model.pgz"

    def score(self, stage: str) -> Path:
        """A stage's score document."""
        return self.root / stage / "score.json"

    @property
    def submission(self) -> Path:
        """The submission folder."""
        return self.root / "submission"


@dataclass
class StageReport:
    """One row of the final table."""

    stage: str
    seconds: float
    fresh: bool
    file: str
    bytes: int
    figures: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "stage": self.stage,
            "seconds": round(self.seconds, 3),
            "fresh": self.fresh,
            "file": self.file,
            "bytes": self.bytes,
            "figures": self.figures,
        }


@dataclass(frozen=True)
class Requirement:
    """`stage.figure OP number`, checked after the stage."""

    text: str
    stage: str
    figure: str
    operator: str
    bound: float

    def check(self, figures: dict[str, Any]) -> None:
        """RuleError if it does not hold; ConfigError if the stage has no such figure."""
        value = figures.get(self.figure)
        if not isinstance(value, int | float) or isinstance(value, bool):
            numbers = sorted(
                key for key, item in figures.items() if isinstance(item, int | float) and not isinstance(item, bool)
            )
            raise ConfigError(
                f"{self.stage} has no figure {self.figure!r}", f"--require {self.text}", f"it has {', '.join(numbers)}"
            )
        holds = {"<=": value <= self.bound, ">=": value >= self.bound, "<": value < self.bound, ">": value > self.bound}
        if not holds[self.operator]:
            raise RuleError(
                f"{self.stage}.{self.figure} is {value:g}, required {self.operator}{self.bound:g}",
                f"--require {self.text}",
                "the stage's files stay; later stages were not run",
            )


def parse_requirement(text: str) -> Requirement:
    """Read `train.bpb<=1.0861`. ConfigError if it is not of that form."""
    match = re.fullmatch(r"\s*([a-z]+)\.(\w+)\s*(<=|>=|<|>)\s*([-+0-9.eE_]+)\s*", text)
    if not match or match[1] not in STAGES:
        raise ConfigError(
            f"{text!r} is not of the form STAGE.FIGURE<=NUMBER", "--require", f"stages are {', '.join(STAGES)}"
        )
    try:
        return Requirement(text, match[1], match[2], match[3], float(match[4]))
    except ValueError:
        raise ConfigError(f"{match[4]!r} is not a number", f"--require {text}") from None


def check_writable(out: Path) -> None:
    """StorageError unless files can be made in the output directory, or in the parent it will be made in."""
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise StorageError("a file stands where a directory is to be made", str(place), "choose another --out")
    try_writing(place)


def preflight(
    out: Path,
    resolved: Resolved,
    device_name: str,
    stages: tuple[str, ...],
    rehearsal: bool = False,
    ranks: int | None = None,
) -> list[str]:
    """Check in the first second everything later stages need; returns what was checked. A rehearsal (--dry-run) may
    plan a run for GPUs on a machine without them. `ranks` is the number of processes that train, None without --gpus.

    SetupError for a missing package, compiler or device, StorageError for an output that cannot hold the run.
    """
    from pgolf.bundle.script import build_script, counted
    from pgolf.core.dist import pick_device
    from pgolf.core.quant.gptq import check_search
    from pgolf.stages.launch import check_ranks
    from pgolf.stages.train import check_gpu, check_sense, choose_compile, planned_attention, planned_kernels

    config, checked = resolved.config, []
    if "train" in stages:
        check_sense(config)
    check_writable(out)
    checked.append("output writable")
    _, size, _ = predict(config)
    needed = parameters(config) * 4 * 3 * (config.train.keep_checkpoints + 2) + 3 * size.artifact_bytes + (16 << 20)
    if (free := free_bytes(out)) < needed:
        raise StorageError(
            f"the run needs about {needed:,} bytes, {free:,} are free",
            str(out),
            "free some space or choose another --out",
        )
    checked.append(f"{free:,} bytes free, {needed:,} needed")
    package = CODEC_PACKAGES.get(name_of("Codec", type(config.compress)))
    for name in (
        "sentencepiece",
        "safetensors",
        *([package] if package else []),
        *(["python_minifier"] if "package" in stages else []),
    ):
        if importlib.util.find_spec(name) is None:
            raise SetupError(
                f"the package {name} is missing, which a later stage needs",
                "preflight",
                f"pip install {name.replace('_', '-')}",
            )
    checked.append("packages present")
    device = pick_device(device_name, 0)
    if ranks:
        checked.append(f"{config.train.micro_steps(ranks)} micro-steps on each of {ranks} ranks")
        if not rehearsal:
            check_ranks(ranks, device_name)
    if "train" in stages and not rehearsal:
        check_gpu(config, device_name)
        checked.append("attention {} ({})".format(*planned_attention(config, device)))
        checked.append("kernels {} ({})".format(*planned_kernels(config, device)))
    if "quantize" in stages and not rehearsal:
        check_search(config.quant, device)
    checked.append(f"device {device}; compile {choose_compile(config.train.compile, device)[1]}")
    if {"compress", "package"} & set(stages):
        code_bytes = len(build_script(config if "package" in stages else counted(config)).packed)
        checked.append(f"train_gpt.py packs to about {code_bytes:,} bytes")
    return checked


def check_sources(data: Path | None, text: list[Path], tokenizer: Path | None, resolved: Resolved) -> None:
    """SetupError when shards or the tokenizer are missing, InputError when they do not fit each other or the model."""
    from pgolf.core.bpb import byte_table, load_tokenizer
    from pgolf.corpus.sources import expand
    from pgolf.corpus.tokenizer import read_tokenizer
    from pgolf.dataset import open_dataset

    vocab_size = resolved.config.model.vocab_size
    if tokenizer is not None and not tokenizer.is_file():
        raise SetupError("the tokenizer is missing", str(tokenizer), "check the path given with --tokenizer")
    found = 0
    if data is not None:
        dataset = open_dataset(data, tokenizer, vocab_size)
        for split in ("train", "val"):
            if not dataset.shards[split]:
                hint = f"expected files like fineweb_{split}_000000.bin"
                raise SetupError(f"the dataset has no {split} shards", str(data), hint)
        found = dataset.vocab_size
        dataset.byte_table()
    elif tokenizer is not None:
        processor = load_tokenizer(read_tokenizer(tokenizer), str(tokenizer))
        found = processor.vocab_size()
        byte_table(processor, found)
    expand(text)
    if found > vocab_size:
        fix = f"set model.vocab_size={found}"
        raise InputError(f"the tokenizer has {found} ids, the model {vocab_size}", str(tokenizer or data), fix)


class Pipeline:
    """The stages of one run, as functions from files to files."""

    def __init__(
        self,
        layout: Layout,
        resolved: Resolved,
        device: str,
        console: Console,
        data: Path | None,
        text: list[Path],
        tokenizer: Path | None,
        trackers: Sequence[str] = (),
        ranks: int | None = None,
    ) -> None:
        self.layout, self.resolved, self.device, self.console = layout, resolved, device, console
        self.data, self.text, self.tokenizer = data, text, tokenizer
        self.trackers, self.ranks = trackers, ranks
        self.force = False

    def tokenize(self) -> dict[str, Any]:
        """Text, or shards from elsewhere, to the run's dataset."""
        from pgolf.stages.adopt import adopt_dataset
        from pgolf.stages.tokenize import tokenize

        if self.data is not None:
            manifest = adopt_dataset(
                self.data, self.layout.data, self.tokenizer, self.resolved.config.model.vocab_size, self.console
            )
        else:
            manifest = tokenize(
                self.text,
                self.layout.data,
                self.resolved,
                self.tokenizer,
                self.console,
                python_docs=not self.text,
            )
        splits = manifest["splits"]
        figures = {
            f"{split}_{key}": splits[split].get(key)
            for split in ("train", "val")
            for key in ("documents", "tokens", "charged_bytes")
        }
        return {"fresh": manifest["fresh"], "figures": figures, "file": self.layout.data / "manifest.json"}

    def dataset(self) -> Any:
        """The run's dataset."""
        from pgolf.dataset import open_dataset

        return open_dataset(self.layout.data, vocab_size=self.resolved.config.model.vocab_size)

    def plain(self) -> Resolved:
        """The configuration with plain evaluation, for figures that compare floats with codes."""
        from pgolf.config.load import resolve

        return resolve(stored=self.resolved.values, stored_name="run", sets=["eval.method=plain"])

    def train(self) -> dict[str, Any]:
        """Train, then score the float model."""
        from pgolf.core.quant.roles import compensating
        from pgolf.stages.calibrate import training_stream
        from pgolf.stages.evaluate import score_model
        from pgolf.stages.launch import joined_world, train_on_ranks
        from pgolf.stages.model_files import load_model
        from pgolf.stages.train import train

        for one in compensating(self.resolved.config.quant)[:1]:
            training_stream(self.dataset(), one)
        dataset, out, trackers = self.dataset(), self.layout.checkpoint.parent, self.trackers
        if self.ranks:
            entry = train_on_ranks(
                self.ranks, dataset, out, self.resolved, self.device, self.console, self.force, trackers
            )
        else:
            world = joined_world(self.device)
            entry = train(dataset, out, self.resolved, world, self.console, self.force, trackers)
        score = score_model(
            load_model(self.layout.checkpoint),
            self.dataset(),
            "eval",
            self.plain(),
            self.device,
            self.console,
            self.layout.score("train"),
        )
        figures = entry["figures"] | {"bpb": bpb_of(score["score"]), "val_loss": score["score"]["val_loss"]}
        return {"fresh": entry["fresh"], "figures": figures, "file": self.layout.checkpoint}

    def quantize(self) -> dict[str, Any]:
        """Quantize, then score the codes."""
        from pgolf.stages.evaluate import score_model
        from pgolf.stages.model_files import load_model
        from pgolf.stages.quantize import quantize

        entry = quantize(
            self.layout.checkpoint,
            self.dataset(),
            self.layout.quantized,
            self.resolved,
            self.device,
            self.console,
            force=self.force,
        )
        score = score_model(
            load_model(self.layout.quantized),
            self.dataset(),
            "eval",
            self.plain(),
            self.device,
            self.console,
            self.layout.score("quantize"),
        )
        figures = entry["figures"] | {"bpb": bpb_of(score["score"]), "val_loss": score["score"]["val_loss"]}
        figures.pop("tensors")
        return {"fresh": entry["fresh"], "figures": figures, "file": self.layout.quantized}

    def compress(self) -> dict[str, Any]:
        """Codes to the artifact."""
        from pgolf.stages.compress import compress

        entry = compress(self.layout.quantized, self.layout.artifact, self.resolved, self.console, self.force)
        return {"fresh": entry["fresh"], "figures": entry["figures"], "file": self.layout.artifact}

    def scored(self, stage: str) -> dict[str, Any]:
        """Score the artifact as it lies on disk. RuleError if that took longer than its budget."""
        from pgolf.stages.eval_clock import judge
        from pgolf.stages.evaluate import score_model
        from pgolf.stages.model_files import load_model

        document = score_model(
            load_model(self.layout.artifact),
            self.dataset(),
            stage,
            self.resolved,
            self.device,
            self.console,
            self.layout.score(stage),
            self.force,
        )
        figures = {
            **document["score"],
            "method": document["method"]["name"],
            "score_seconds": document["seconds"]["score"],
            "partial": document["partial"],
        }
        judge(document, "strict")
        return {"fresh": document["fresh"], "figures": figures, "file": self.layout.score(stage)}

    def package(self) -> dict[str, Any]:
        """The submission folder."""
        from pgolf.stages.package import package

        document = package(
            [self.layout.artifact],
            self.layout.submission,
            "",
            [],
            self.layout.data,
            self.device,
            self.console,
            force=True,
            title=self.resolved.preset,
            again=self.force,
        )
        figures = {
            key: document[key]
            for key in (
                "artifact_bytes",
                "code_bytes",
                "total_bytes",
                "cap_bytes",
                "headroom_bytes",
                "val_bpb",
                "val_loss",
            )
        }
        return {"fresh": document["fresh"], "figures": figures, "file": self.layout.submission / "train_gpt.py"}

    def action(self, stage: str) -> Callable[[], dict[str, Any]]:
        """The function of a stage."""
        if stage in ("eval", "ttt"):
            return lambda: self.scored(stage)
        actions: dict[str, Callable[[], dict[str, Any]]] = {
            "tokenize": self.tokenize,
            "train": self.train,
            "quantize": self.quantize,
            "compress": self.compress,
            "package": self.package,
        }
        return actions[stage]


def chosen_stages(first: str, last: str) -> tuple[str, ...]:
    """The stages from `first` to `last`. ConfigError for unknown names or an empty range."""
    for option, name in (("--from", first), ("--until", last)):
        if name and name not in STAGES:
            raise ConfigError(f"there is no stage {name!r}", option, f"stages are {', '.join(STAGES)}")
    chosen = STAGES[STAGES.index(first or STAGES[0]) : STAGES.index(last or STAGES[-1]) + 1]
    if not chosen:
        raise ConfigError(f"--from {first} comes after --until {last}", "run")
    return chosen


def run(
    pipeline: Pipeline, stages: tuple[str, ...], requirements: list[Requirement], forced: bool
) -> list[StageReport]:
    """Run the stages in order; `forced` reruns the first of them even if it is fresh. Raises what a stage raises; what
    cannot be packaged is refused as soon as the data are there.
    """
    from pgolf.stages.package import check_claim

    reports = []
    unchecked = "package" in stages
    for index, stage in enumerate(stages):
        pipeline.force = forced and index == 0
        start = time.monotonic()
        if unchecked and stage != "tokenize":
            check_claim(pipeline.resolved.config, pipeline.dataset())
            unchecked = False
        result = pipeline.action(stage)()
        file = result["file"]
        report = StageReport(
            stage,
            time.monotonic() - start,
            result["fresh"],
            os.path.relpath(file, pipeline.layout.root),
            size_of(file, stage),
            result["figures"],
        )
        reports.append(report)
        verdict = "unchanged, nothing to do" if report.fresh else f"done in {report.seconds:.1f} s"
        pipeline.console.line(f"{stage}: {verdict}, {file}")
        for requirement in requirements:
            if requirement.stage == stage:
                requirement.check(report.figures)
    return reports


def size_of(file: Path, stage: str) -> int:
    """Bytes of a stage's output: of the shards for tokenize, wherever they lie, of the file otherwise."""
    from pgolf.dataset import open_dataset

    try:
        if stage == "tokenize":
            shards = open_dataset(file.parent).shards
            return sum(path.stat().st_size for paths in shards.values() for path in paths)
        return file.stat().st_size
    except OSError as error:
        raise PgolfError(f"a stage did not write its file: {error.strerror}", str(file)) from None
