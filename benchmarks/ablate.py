"""What each technique of a model is worth, at a size that a CPU can afford: a small baseline, and the same one with
one thing changed, on the same tokens, for the same steps, with the same seeds.

BPB of the validation split after training, as the mean over seeds with its standard error; `gain` is the baseline's BPB
minus the technique's, seed by seed, so that positive is better. `time` is the time of a step against the baseline's in
the same process, taken in turns. With --pairs the best ones are also tried two by two: gains do not add.

Small models over few steps say little about large ones over many: this finds what is broken and what hurts early.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.report import parser, show

BASE = {
    "model.num_layers": 6,
    "model.model_dim": 96,
    "model.num_heads": 4,
    "model.num_kv_heads": 2,
    "train.seq_len": 128,
    "train.batch_tokens": 2048,
    "train.micro_batch_tokens": 2048,
    "train.val_every": 0,
    "train.log_every": 0,
    "train.checkpoint_every": 0,
    "optim.matrix.momentum_warmup_steps": 50,
}
"""Over the preset demo."""

TECHNIQUES: dict[str, dict[str, Any]] = {
    "matrix_init orthogonal": {"model.matrix_init": "orthogonal"},
    "embed untied": {"model.embed": "untied"},
    "embed factored": {"model.embed": "factored", "model.embed.width": 48},
    "documents by_document": {"model.documents": "by_document", "model.documents.max_tokens": 128},
    "hash_embed bigram": {"model.hash_embed": "bigram", "model.hash_embed.dim": 32, "model.hash_embed.muon": True},
    "hash_embed engram_lite": {"model.hash_embed": "engram_lite", "model.hash_embed.dim": 16},
    "smear static": {"model.smear": "static"},
    "smear gated": {"model.smear": "gated"},
    "smear cumulative": {"model.smear": "cumulative"},
    "position partial": {"model.position.dims": 8},
    "position yarn": {"model.position": "yarn", "model.position.longest": 256, "model.position.trained": 128},
    "norm_scale depth": {"model.norm_scale": "depth"},
    "head_mix learned": {"model.head_mix": "learned"},
    "value_embed shared": {"model.value_embed": "shared", "model.value_embed.dim": 32, "model.value_embed.on": "4,5"},
    "value_residual mix": {"model.value_residual": "mix"},
    "value_residual add": {"model.value_residual": "add"},
    "key_offset partial": {"model.key_offset": "partial"},
    "qk_gain 4": {"model.qk_gain.init": 4.0},
    "window sliding": {"model.window": "sliding", "model.window.tokens": 32, "model.window.full_layers": 3},
    "xsa xsa": {"model.xsa": "xsa"},
    "xsa gated": {"model.xsa": "gated"},
    "head_gate biased": {"model.head_gate": "biased"},
    "head_gate dense": {"model.head_gate": "dense"},
    "head_gate sparse": {"model.head_gate": "sparse"},
    "head_gate output": {"model.head_gate": "output"},
    "mlp leaky_relu2": {"model.mlp": "leaky_relu2"},
    "mlp swiglu": {"model.mlp": "swiglu"},
    "mlp low_rank": {"model.mlp": "low_rank", "model.mlp.rank": 48},
    "mlp mult 3": {"model.mlp.mult": 3.0},
    "mix phase": {"model.mix": "phase"},
    "mix scalar": {"model.mix": "scalar"},
    "mix plain": {"model.mix": "plain"},
    "skips gated": {"model.skips": "gated"},
    "skips none": {"model.skips": "none"},
    "loop layers": {"model.loop": "layers", "model.loop.start": 2, "model.loop.end": 3, "model.loop.enable_at": 0.35},
    "residual parallel": {"model.residual": "parallel", "model.residual.start": 4},
    "residual two_lanes": {"model.residual": "two_lanes", "model.residual.start": 4},
    "residual two_lanes_in_turn": {"model.residual": "two_lanes_in_turn", "model.residual.start": 4},
    "logit_bias learned": {"model.logit_bias": "learned"},
    "logit_softcap poly5": {"model.logit_softcap": "poly5"},
    "logit_softcap sigmoid": {"model.logit_softcap": "sigmoid"},
    "aux_loss z_loss": {"model.aux_loss": "z_loss"},
    "aux_loss multi_token": {"model.aux_loss": "multi_token"},
    "precision ternary": {"model.precision": "ternary", "model.precision.group": 32},
    "precision binary": {"model.precision": "binary", "model.precision.group": 32},
    "matrix rows l2": {"optim.matrix.rows": "l2"},
    "matrix polar": {"optim.matrix.coefficients": "polar"},
}
"""Technique -> keys it sets."""


def configuration(changes: dict[str, Any], steps: int, vocab_size: int) -> Any:
    """The resolved configuration of a run."""
    from pgolf.config.load import resolve

    values = {**BASE, "train.iterations": steps, "model.vocab_size": vocab_size, **changes}
    words = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]
    return resolve("demo", words).config


def train_once(job: tuple[str, dict[str, Any], int, int, int, str]) -> dict[str, Any]:
    """Train one configuration with one seed; BPB of the first validation targets and the parameters it has."""
    import torch

    from pgolf.core.dist import World
    from pgolf.core.evals.ledger import evaluate
    from pgolf.core.evals.plain import PlainEval
    from pgolf.core.train.loop import Watch, fit, start_state
    from pgolf.dataset import open_dataset

    name, changes, seed, steps, targets, folder = job
    torch.set_num_threads(1)
    dataset = open_dataset(Path(folder))
    config = configuration(changes, steps, dataset.vocab_size)
    world = World()
    state = start_state(config.model, config.train, config.optim, dataset.split("train"), seed, world)
    watch = Watch(
        lambda event: None, lambda: {"val_loss": 0.0, "val_bpb": 0.0, "val_tokens": 0}, lambda s: None, lambda: False
    )
    started = time.perf_counter()
    fit(state, config.train, config.optim, world, watch, False)
    seconds = time.perf_counter() - started
    tokens, charges = dataset.validation()
    method = PlainEval(seq_len=config.train.seq_len, max_tokens=min(targets, len(tokens) - 1))
    score, _ = evaluate(state.model.eval(), tokens, charges, method)
    parameters = sum(weight.numel() for weight in state.model.parameters())
    return {"name": name, "seed": seed, "bpb": score.bpb, "seconds": seconds, "parameters": parameters}


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
    ratio = statistics.median(run["seconds"] / base[run["seed"]]["seconds"] for run in runs)
    return {
        "technique": name,
        "bpb": round(statistics.mean(run["bpb"] for run in runs), 4),
        "gain": round(statistics.mean(gains), 4),
        "standard_error": round(error, 4),
        "time": round(ratio, 2),
        "parameters": runs[0]["parameters"],
    }


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All rows, best gain first, then the pairs if they are asked for."""
    data = str(prepare(folder, options.data, options.vocab_size))
    chosen = {name: TECHNIQUES[name] for name in options.only or TECHNIQUES}
    seeds = range(1, options.seeds + 1)

    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:

        def runs(changes: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
            jobs = [(n, c, seed, options.steps, options.targets, data) for n, c in changes.items() for seed in seeds]
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in changes}
            for run in pool.map(train_once, jobs):
                found[run["name"]].append(run)
            return found

        first = runs({"baseline": {}, **chosen})
        base = {run["seed"]: run for run in first["baseline"]}
        rows = [row_of(name, found, base) for name, found in first.items()]
        rows.sort(key=lambda row: -row["gain"])
        if options.pairs:
            best = [row["technique"] for row in rows if row["technique"] != "baseline"][: options.pairs]
            both = {
                f"{one} + {two}": {**chosen[one], **chosen[two]}
                for one, two in itertools.combinations(best, 2)
                if one.split()[0] != two.split()[0]
            }
            rows += sorted(
                (row_of(name, found, base) for name, found in runs(both).items()), key=lambda row: -row["gain"]
            )
    return rows


def main() -> None:
    """Train everything and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, help="dataset directory; Python's documentation without one")
    arguments.add_argument("--vocab-size", type=int, default=1024)
    arguments.add_argument("--steps", type=int, default=150)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--targets", type=int, default=32768, help="validation targets to score")
    arguments.add_argument("--pairs", type=int, default=0, help="try this many of the best two by two")
    arguments.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    arguments.add_argument("--only", nargs="*", choices=sorted(TECHNIQUES), help="these techniques alone")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    options.data = str(options.data or "Python's documentation")
    show("ablate", options, rows, [f"{len(rows)} rows; a gain below two standard errors is none"])


if __name__ == "__main__":
    main()
