"""The thirty rows, and for each what provokes it: campaigns of rounds, and the tests that are marked with the row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.faults import bombs, damage, stopping
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.stages import STAGES, Bench

ROWS = {
    "F1": "kill -9 in train",
    "F2": "kill -9 in the other stages",
    "F3": "SIGTERM, SIGINT, SIGHUP",
    "F4": "a rank of several is killed",
    "F5": "the disk is full",
    "F6": "the n-th system call fails",
    "F7": "files cut off",
    "F8": "bits flipped",
    "F9": "decompression bombs",
    "F10": "absurd sizes, counts, shapes and nesting",
    "F11": "tensors that overlap or leave gaps, unknown types and versions",
    "F12": "malicious pickles",
    "F13": "malicious and damaged tokenizers",
    "F14": "a tokenizer that is not the shards'",
    "F15": "ids beyond the vocabulary or beyond uint16",
    "F16": "shards that are none",
    "F17": "weights that are not finite, rows of zeros, outliers",
    "F18": "a loss that is not finite",
    "F19": "Hessians that are not positive definite, too little calibration",
    "F20": "two writers",
    "F21": "readers beside a writer, one table from many processes",
    "F22": "names that lead elsewhere",
    "F23": "an artifact at the limit, a byte below and above",
    "F24": "places that cannot be read or written",
    "F25": "clocks that jump, spent budgets",
    "F26": "the network fails",
    "F27": "no GPU, no memory, no compiler, no package",
    "F28": "terminals, pipes and locales",
    "F29": "wrong configurations",
    "F30": "evaluations that cheat",
}
ALL = tuple(stage.name for stage in STAGES)
OTHERS = tuple(name for name in ALL if name != "train")


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """Rounds of one fault. `full` and `reduced` are what `run` takes for rounds; each says what it counts."""

    row: str
    how: str
    full: int
    reduced: int
    run: Callable[[Bench, int], Outcome]


EVERY = 1 << 30
CAMPAIGNS = (
    Campaign(row="F1", how="killed at random moments", full=50, reduced=1,
             run=partial(stopping.kill, names=("train",))),
    Campaign(row="F1", how="killed at every request to write", full=EVERY, reduced=3,
             run=partial(stopping.crash, names=("train",))),
    Campaign(row="F2", how="killed at random moments, each stage", full=50, reduced=1,
             run=partial(stopping.kill, names=OTHERS)),
    Campaign(row="F2", how="killed at every request to write, each stage", full=EVERY, reduced=2,
             run=partial(stopping.crash, names=OTHERS)),
    Campaign(row="F3", how="at random moments, once and twice, each stage", full=60, reduced=1,
             run=partial(stopping.interrupted, names=ALL)),
    Campaign(row="F5", how="RLIMIT_FSIZE, each stage", full=20, reduced=2,
             run=partial(stopping.file_limit, names=ALL)),
    Campaign(row="F5", how="small file systems in memory, each stage", full=20, reduced=1,
             run=partial(stopping.small_disk, names=ALL)),
    Campaign(row="F6", how="EIO, ENOSPC, EINTR, EDQUOT at every request to write, each stage", full=EVERY, reduced=5,
             run=partial(stopping.failing, names=ALL)),
    Campaign(row="F7", how="every format at every kilobyte and field", full=EVERY, reduced=30, run=damage.truncate),
    Campaign(row="F8", how="every format, all bits of headers and 10,000 of what follows", full=10_000, reduced=100,
             run=damage.flip),
    Campaign(row="F9", how="1 GiB of zeros for every codec", full=64, reduced=8, run=bombs.explode),
    Campaign(row="F10", how="tensor files, shards, manifests and configurations changed and signed again", full=20_000,
             reduced=150, run=damage.mutants),
    Campaign(row="F13", how="tokenizers changed, each tried in a process of its own", full=20_000, reduced=100,
             run=damage.tokenizers),
)  # fmt: skip
