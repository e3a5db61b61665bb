"""Whether one set of runs beats another, and how sure that is (spec: submission 2, 3)."""

import math
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgolf.core.errors import InputError
from pgolf.core.files import read_bytes

OFFICIAL = Path(__file__).with_name("official.toml")
MAX_RULES = 1 << 20


@dataclass(frozen=True)
class Sample:
    """Mean BPB of n runs and its standard deviation (n - 1), 0 where that is not known. A published mean without one
    counts as exact.
    """

    mean: float
    std: float
    n: int
    exact: bool = False

    @property
    def spread(self) -> bool:
        """Whether anything is known of the spread."""
        return self.n > 1 and self.std > 0


@dataclass(frozen=True)
class Rule:
    """What it takes to beat: more than a bar, in nats per token, at a one-sided p."""

    name: str
    bar_nats: float
    p: float
    source: str = ""


def sample_of(values: list[float]) -> Sample:
    """Of the scores of some runs."""
    mean = math.fsum(values) / len(values)
    return Sample(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)), len(values))


def load_rules(path: Path | None) -> list[Rule]:
    """Rules from a TOML file, or the challenge's. InputError for a file that has none."""
    file = path or OFFICIAL
    try:
        tables = tomllib.loads(read_bytes(file, MAX_RULES).decode())["rule"]
        return [
            Rule(str(row["name"]), float(row["bar_nats"]), float(row["p"]), row.get("source", "")) for row in tables
        ]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"no rules: {error}", str(file), "tables [[rule]] with name, bar_nats and p") from None


def standard_error(old: Sample, new: Sample) -> tuple[float, float]:
    """Of the difference of the means, with Welch's degrees of freedom; NaN unless both spreads are known, or the old
    mean is exact.
    """
    if not new.spread or not (old.spread or old.exact):
        return math.nan, math.nan
    parts = [(one.std**2 / one.n, one.n - 1) for one in (old, new) if one.spread]
    variance = math.fsum(part for part, _ in parts)
    return math.sqrt(variance), variance**2 / math.fsum(part**2 / freedom for part, freedom in parts)


def compared(old: Sample, new: Sample, bytes_per_token: float, rules: list[Rule]) -> dict[str, Any]:
    """The difference new - old in BPB and, by the new runs' bytes per token, in nats per token: 95 % interval, Welch
    test two-sided and one-sided (new is lower), and each rule's p and verdict. None where nothing is known of spreads.
    """
    from scipy.stats import t as student

    nats = math.log(2) * bytes_per_token
    difference = new.mean - old.mean
    error, freedom = standard_error(old, new)
    known = math.isfinite(error)

    def lower(bar: float) -> float | None:
        return float(student.cdf((difference + bar) / error, freedom)) if known else None

    reach = float(student.ppf(0.975, freedom)) * error if known else math.nan
    both = float(2 * student.sf(abs(difference) / error, freedom)) if known else None
    verdicts = []
    for rule in rules:
        chance = lower(rule.bar_nats / nats)
        verdicts.append({**asdict(rule), "p_found": chance, "beats": chance is not None and chance < rule.p})
    return {
        "delta_bpb": difference,
        "delta_nats": difference * nats,
        "bytes_per_token": bytes_per_token,
        "interval_bpb": [difference - reach, difference + reach] if known else None,
        "interval_nats": [(difference - reach) * nats, (difference + reach) * nats] if known else None,
        "t": difference / error if known else None,
        "df": freedom if known else None,
        "p_two_sided": both,
        "p_one_sided": lower(0.0),
        "rules": verdicts,
    }
