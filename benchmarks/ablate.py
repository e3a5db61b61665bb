"""What each technique of a model is worth, at a size that a CPU can afford: a small baseline, and the same one with
one thing changed, on the same tokens, for the same steps, with the same seeds.

BPB of the validation split after training, as the mean over seeds with its standard error; `gain` is the baseline's BPB
minus the technique's, seed by seed, so that positive is better. `time` is that of a training step, loops on, against
the baseline's, measured afterwards by turns. `artifact_bytes_added` is what the artifact is predicted to have beyond
the baseline's, as `pgolf size` predicts it. With --pairs the best parts of a model are also tried two by two, each
beside the sum of the single gains: gains do not add. With --write the figures go where `pgolf techniques` and
docs/techniques.md take them from; with --only they join what is there, if it was measured in the same setting with the
same baseline. --predict only predicts, and gives a file's figures their bytes anew.

Small models over few steps say little about large ones over many: this finds what is broken and what hurts early.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import parser, seconds_of, show
from pgolf.catalog import CATALOG, name_of
from pgolf.config.describe import slot_keys
from pgolf.config.run import RunConfig
from pgolf.core.files import write_json
from pgolf.core.model.params import ATTN, MLP
from pgolf.sizing import predict

if TYPE_CHECKING:
    from pgolf.core.train.loop import TrainState, Watch
    from pgolf.dataset import Dataset

BASE = {
    "model.num_layers": 6,
    "model.model_dim": 96,
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "train.seq_len": 128,
    "train.batch_tokens": 1024,
    "train.micro_batch_tokens": 1024,
    "train.val_every": 0,
    "train.log_every": 0,
    "train.checkpoint_every": 0,
    "optim.matrix.momentum_warmup_steps": 50,
    "optim.matrix.bfloat16": False,
}
"""Over the preset demo."""

GROUP = 32
"""Weights that share a scale where the model's precision is ternary or binary."""

FITTING: dict[str, dict[str, Any]] = {
    "model.embed factored": {"width": 48},
    "model.documents by_document": {"max_tokens": 128},
    "model.hash_embed bigram": {"dim": 32, "muon": True},
    "model.hash_embed engram_lite": {"dim": 16},
    "model.position yarn": {"longest": 256, "trained": 128},
    "model.value_embed shared": {"dim": 32, "on": "4,5"},
    "model.window sliding": {"tokens": 32, "full_layers": 3},
    "model.window pattern": {"tokens": 32},
    "model.mlp low_rank": {"rank": 48},
    "model.loop layers": {"start": 2, "end": 3, "enable_at": 0.35},
    "model.residual parallel": {"start": 4},
    "model.residual two_lanes": {"start": 4},
    "model.residual two_lanes_in_turn": {"start": 4},
    "model.backout backout": {"after": 3},
    "model.precision ternary": {"group": GROUP},
    "model.precision binary": {"group": GROUP},
    "optim.lr_scale by_role": {"early": 0.8333, "early_layers": 3},
    "train.average ema": {"decay": 0.98},
    "train.average emas": {"decays": "0.9,0.95,0.98", "tokens": 32768},
    "train.average swa": {"below": 0.2, "every": 10},
    "train.window_schedule growing": {"first": 32, "last": 64},
    "train.length_schedule growing": {"first": 32},
}
"""Settings of techniques that do not fit the small model without, or so short a run."""

SAME = 1e-4
"""BPB by which the baseline may differ where rows join others: rounding, and products of another processor."""

ELSEWHERE = ("model.counts", "train.qat", "optim.width_rule", "optim.parallel", "optim.warmdown")
"""Keys of what these figures could not show: what is gained by an evaluator, after quantization, at another width, in
speed, under a clock.
"""


def techniques() -> list[str]:
    """Key and name of all that the baseline does not have in its model, optimizer and training, as `pgolf techniques`
    has them.
    """
    keys, config = slot_keys(RunConfig()), configuration({}, 1, 1024)
    found = []
    for slot, key in keys.items():
        if key.startswith(("model.", "optim.", "train.")) and key not in ELSEWHERE:
            usual = name_of(slot, type(attrgetter(key)(config)))
            found += [f"{key} {name}" for name in CATALOG[slot] if name != usual]
    return found


LOOP = {"model.loop": "layers", "model.loop.start": 2, "model.loop.end": 3, "model.loop.enable_at": 0.35}
DECAY = {"optim.matrix.weight_decay": 0.1}
DOCUMENTS = {"model.documents": "by_document", "model.documents.max_tokens": 128}
SETTINGS: dict[str, dict[str, Any]] = {
    "matrix_init orthogonal": {"model.matrix_init": "orthogonal"},
    "embed.spectrum overtone": {"model.embed.spectrum": "overtone"},
    "position.dims 8 of 24": {"model.position.dims": 8},
    "position.reference 64": {"model.position.reference": 64},
    "hash_embed.trigrams": {"model.hash_embed": "bigram", "model.hash_embed.dim": 32, "model.hash_embed.trigram": True},
    "qk_gain.init 4": {"model.qk_gain.init": 4.0},
    "mlp.mult 3": {"model.mlp.mult": 3.0},
    "loop.own control": LOOP | {"model.loop.own": "control"},
    "loop.own mlp": LOOP | {"model.loop.own": "mlp"},
    "loop.lora_rank 8": LOOP | {"model.loop.lora_rank": 8},
    "optim.matrix.rows l2": {"optim.matrix.rows": "l2"},
    "optim.matrix.coefficients polar": {"optim.matrix.coefficients": "polar"},
    "optim.matrix.bfloat16": {"optim.matrix.bfloat16": True},
    "optim.matrix.iteration gram": {"optim.matrix.bfloat16": True, "optim.matrix.iteration": "gram"},
    "optim.matrix.weight_decay 0.1": DECAY,
    "optim.matrix.cautious_decay": DECAY | {"optim.matrix.cautious_decay": True},
    "optim.decay_schedule taper": DECAY | {"optim.decay_schedule": "taper"},
    "optim.decay_schedule ramp": DECAY | {"optim.decay_schedule": "ramp"},
    "optim.grad_clip 0.3": {"optim.grad_clip": 0.3},
    "optim.clip_mode adaptive": {"optim.grad_clip": 0.3, "optim.clip_mode": "adaptive"},
    "optim.adam_every 2": {"optim.adam_every": 2},
    "train.loader documents": {"train.loader": "documents", **DOCUMENTS},
}
"""Settings that are no part of their own, and techniques that want others -> keys they set."""


def changes_of(name: str) -> dict[str, Any]:
    """The keys a technique or setting sets."""
    if name in SETTINGS:
        return SETTINGS[name]
    key, kind = name.split()
    return {key: kind} | {f"{key}.{field}": value for field, value in FITTING.get(name, {}).items()}


def configuration(changes: dict[str, Any], steps: int, vocab_size: int) -> Any:
    """The resolved configuration of a run."""
    from pgolf.config.load import resolve

    values = {**BASE, "train.iterations": steps, "model.vocab_size": vocab_size, **changes}
    words = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]
    return resolve("demo", words).config


def artifact_bytes(changes: dict[str, Any], vocab_size: int) -> int:
    """Predicted bytes of a model's artifact, made by the baseline's quantizer and codec, or by the quantizer that fits
    the model's precision: then tables as fp8, and the scales of groups, 2 bytes each, which the prediction leaves out.
    """
    precision = changes.get("model.precision", "none")
    if precision == "none":
        return predict(configuration(changes, 1, vocab_size))[1].artifact_bytes
    fitting: dict[str, Any] = {"quant.method": "by_role", "quant.embed.method": "fp8", "quant.head.method": "fp8"}
    for role in (ATTN, MLP):
        fitting |= {f"quant.{role}.method": precision, f"quant.{role}.group": GROUP}
    rows, size, _ = predict(configuration(changes | fitting, 1, vocab_size))
    return size.artifact_bytes + 2 * sum(row.spec.numel for row in rows if row.spec.role in (ATTN, MLP)) // GROUP


def bytes_added(name: str, vocab_size: int) -> int:
    """What a technique, a setting or a pair adds to the baseline's artifact."""
    return artifact_bytes(changes_by(name), vocab_size) - artifact_bytes({}, vocab_size)


def train_once(job: tuple[str, dict[str, Any], int, int, int, str, int]) -> dict[str, Any]:
    """Train one configuration with one seed; BPB of the first validation targets and the parameters it has."""
    from pgolf.core.dist import World
    from pgolf.core.evals.ledger import evaluate
    from pgolf.core.evals.plain import PlainEval
    from pgolf.core.train.loop import fit

    name, changes, seed, steps, targets, folder, vocab_size = job
    config = configuration(changes, steps, vocab_size)
    state, dataset = begun(config, seed, folder)
    fit(state, config.train, config.optim, World(), quiet_watch(), False)
    tokens, charges = dataset.validation()
    method = PlainEval(seq_len=config.train.seq_len, max_tokens=min(targets, len(tokens) - 1))
    score, _ = evaluate(state.model.eval(), tokens, charges, method)
    parameters = sum(weight.numel() for weight in state.model.parameters())
    return {"name": name, "seed": seed, "bpb": score.bpb, "parameters": parameters}


def step_times(changes: dict[str, dict[str, Any]], vocab_size: int, rounds: int, folder: str) -> dict[str, float]:
    """Time of a training step against the baseline's, as the median over rounds in which the two take turns."""
    plain = stepper({}, vocab_size, folder)
    found = {}
    for name, keys in changes.items():
        other = stepper(keys, vocab_size, folder)
        pairs = [(seconds_of(other), seconds_of(plain)) for _ in range(rounds + 2)][2:]
        found[name] = round(statistics.median(one / two for one, two in pairs), 2)
    return found


def begun(config: RunConfig, seed: int, folder: str) -> tuple["TrainState", "Dataset"]:
    """A run before its first step, on one thread, and its data."""
    import torch

    from pgolf.core.dist import World
    from pgolf.core.train.loop import start_state
    from pgolf.dataset import open_dataset

    torch.set_num_threads(1)
    dataset = open_dataset(Path(folder))
    bytes_of = config.train.loss.token_table(dataset.tokenizer, dataset.vocab_size)
    shards = dataset.split("train")
    return start_state(config.model, config.train, config.optim, shards, seed, World(), bytes_of), dataset


def quiet_watch() -> "Watch":
    """A watch that says nothing and asks for nothing."""
    from pgolf.core.train.loop import Watch

    return Watch(lambda event: None, dict, lambda state: None, lambda: False)


def stepper(changes: dict[str, Any], vocab_size: int, folder: str) -> Callable[[], None]:
    """One step of training as at nine tenths of a run, loops switched on."""
    from pgolf.core.dist import World
    from pgolf.core.train.feed import feed
    from pgolf.core.train.loop import mode_at, train_step

    config = configuration(changes, 100, vocab_size)
    state, _ = begun(config, 1, folder)
    batches, watch, scale = feed(state.read, 0, 0, World().device), quiet_watch(), 0.3
    looping, length, parts = mode_at(state, config.train, 0.9, scale)
    if looping:
        config.model.loop.begin(state.model)
    state.model.attach(looping, length, parts)

    def step() -> None:
        train_step(state.model, state, batches, config.train, scale, World(), watch)
        state.step += 1
        config.train.average.absorb(state, scale)

    return step


def prepare(folder: Path, data: Path | None, vocab_size: int) -> Path:
    """The dataset to use: the one given, or Python's documentation tokenized here."""
    if data is not None:
        from pgolf.report.console import Console
        from pgolf.stages.adopt import adopt_dataset

        adopt_dataset(data, folder / "data", None, vocab_size, Console(quiet=True))
        return folder / "data"
    from pgolf.config.load import resolve
    from pgolf.report.console import Console
    from pgolf.stages.tokenize import tokenize

    tokenize([], folder / "data", resolve("demo"), None, Console(quiet=True), python_docs=True)
    return folder / "data"


def row_of(name: str, runs: list[dict[str, Any]], base: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A technique's line of the table."""
    gains = [base[run["seed"]]["bpb"] - run["bpb"] for run in runs]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return {
        "technique": name,
        "bpb": round(statistics.mean(run["bpb"] for run in runs), 5),
        "gain": round(statistics.mean(gains), 5),
        "standard_error": round(error, 5),
        "time": 1.0,
        "parameters_percent": round(100 * runs[0]["parameters"] / base[runs[0]["seed"]]["parameters"] - 100, 2),
    }


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All rows, best gain first, then the pairs if they are asked for."""
    data = str(prepare(folder, options.data, options.vocab_size))
    chosen = {name: changes_of(name) for name in options.only or [*techniques(), *SETTINGS]}
    seeds = range(1, options.seeds + 1)

    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:

        def runs(changes: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
            jobs = [
                (n, c, seed, options.steps, options.targets, data, options.vocab_size)
                for n, c in changes.items()
                for seed in seeds
            ]
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in changes}
            for run in pool.map(train_once, jobs):
                found[run["name"]].append(run)
            return found

        first = runs({"baseline": {}, **chosen})
        base = {run["seed"]: run for run in first["baseline"]}
        rows = [row_of(name, found, base) for name, found in first.items()]
        rows.sort(key=lambda row: -row["gain"])
        if options.pairs:
            gain = {row["technique"]: row["gain"] for row in rows}
            best = best_parts(rows, options.pairs)
            both = {
                f"{one} + {two}": {**chosen[one], **chosen[two]}
                for one, two in itertools.combinations(best, 2)
                if not set(chosen[one]) & set(chosen[two])
            }
            sums = {name: round(sum(gain[one] for one in name.split(" + ")), 4) for name in both}
            pairs = [row_of(name, found, base) | {"sum": sums[name]} for name, found in runs(both).items()]
            rows += sorted(pairs, key=lambda row: -row["gain"])
    changes = {row["technique"]: changes_by(row["technique"]) for row in rows}
    times = step_times(changes, options.vocab_size, options.rounds, data)
    sizes = {name: {"artifact_bytes_added": bytes_added(name, options.vocab_size)} for name in changes}
    return [row | {"time": times[row["technique"]]} | sizes[row["technique"]] for row in rows]


def best_parts(rows: list[dict[str, Any]], count: int) -> list[str]:
    """The parts of a model that gained most, of rows in the order of their gains."""
    return [row["technique"] for row in rows if row["technique"].startswith("model.")][:count]


def changes_by(name: str) -> dict[str, Any]:
    """Keys of the baseline, a technique, a setting or a pair."""
    keys = [changes_of(one) for one in name.split(" + ") if one != "baseline"]
    return {key: value for one in keys for key, value in one.items()}


def document(options: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What `pgolf techniques` and docs/techniques.md tell of a measurement."""
    named = {row.pop("technique"): row for row in rows}
    words = ["python -m benchmarks.ablate", f"--steps {options.steps} --seeds {options.seeds} --pairs {options.pairs}"]
    words += [f"--targets {options.targets}", *([f"--data {options.data.name}"] if options.data else [])]
    settings = f"6 layers of width 96, {BASE['train.seq_len']} tokens a sequence, {BASE['train.batch_tokens']:,} a step"
    where = f"{options.seeds} seeds, {options.steps} steps, {options.targets:,} targets, on a CPU"
    return {
        "schema": "pgolf.measured/1",
        "command": " ".join([*words, "--write pgolf/config/measured.json"]),
        "setting": f"{settings}, {where}",
        "baseline": named.pop("baseline"),
        "techniques": {name: row for name, row in named.items() if name in techniques()},
        "settings": {name: row for name, row in named.items() if name in SETTINGS and name not in techniques()},
        "pairs": {name: row for name, row in named.items() if "sum" in row},
    }


def joined(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What the file has, and what was found now: SystemExit where the two do not compare."""
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name in ("schema", "setting"):
        if before[name] != found[name]:
            raise SystemExit(f"{path} has another {name}, {before[name]!r}, than this measurement, {found[name]!r}")
    then, now = (one["baseline"]["bpb"] for one in (before, found))
    if abs(then - now) > SAME:
        raise SystemExit(f"{path} has a baseline of {then} BPB, now {now}")
    return before | {group: before[group] | found[group] for group in ("techniques", "settings", "pairs")}


def with_bytes(found: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """A file's figures with the bytes as they are predicted now."""

    def sized(name: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"artifact_bytes_added": bytes_added(name, vocab_size)}

    groups = {group: found[group] for group in ("techniques", "settings", "pairs")}
    return (
        found
        | {"baseline": sized("baseline", found["baseline"])}
        | {group: {name: sized(name, row) for name, row in rows.items()} for group, rows in groups.items()}
    )


def main() -> None:
    """Train everything and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, help="dataset directory; Python's documentation without one")
    arguments.add_argument("--vocab-size", type=int, default=1024)
    arguments.add_argument("--steps", type=int, default=150)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--targets", type=int, default=32768, help="validation targets to score")
    arguments.add_argument("--pairs", type=int, default=0, help="try this many of the best two by two")
    arguments.add_argument("--rounds", type=int, default=9, help="steps timed of each")
    arguments.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    arguments.add_argument("--only", nargs="*", choices=[*techniques(), *SETTINGS], help="these alone")
    arguments.add_argument("--write", type=Path, metavar="FILE", help="keep the figures for docs and pgolf techniques")
    arguments.add_argument("--predict", type=Path, metavar="FILE", help="give the figures there their bytes, and end")
    options = arguments.parse_args()
    if options.predict:
        kept = json.loads(options.predict.read_text(encoding="utf-8"))
        write_json(options.predict, with_bytes(kept, options.vocab_size))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    found, path = document(options, [dict(row) for row in rows]), options.write
    options.data, options.write = str(options.data or "Python's documentation"), str(options.write or "")
    rows = [{**row, "sum": row.get("sum", "-")} for row in rows] if options.pairs else rows
    show("ablate", options, rows, [f"{len(rows)} rows; a gain below two standard errors is none"])
    if path:
        write_json(path, joined(path, found) if options.only else found)


if __name__ == "__main__":
    main()
