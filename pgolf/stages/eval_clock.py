"""The clocks of an evaluation: what each phase took, and whether the budget will suffice."""

import time
from collections.abc import Callable
from typing import Any

from pgolf.core.errors import RuleError

CLOCKS = ("strict", "core")
FORECAST = 0.05
"""Share of the targets after which a pass is extrapolated."""


class EvalClock:
    """Seconds by phase since `began_s` on the given clock. *strict* counts everything, *core* from the first score
    on; both include what an interrupted pass had spent (`before`: phase -> seconds).
    """

    def __init__(self, budget_s: float, judged: str, began_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.budget_s, self.judged, self.now = budget_s, judged, now
        self.phase, self.since, self.began_s = "load", began_s, began_s
        self.phases: dict[str, float] = {}
        self.first_s: float | None = None
        self.before: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """The phase before ends, this one begins."""
        moment = self.now()
        self.phases[self.phase] = self.phases.get(self.phase, 0.0) + moment - self.since
        self.phase, self.since = phase, moment
        if phase == "score" and self.first_s is None:
            self.first_s = moment

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds, those of an interrupted pass included."""
        self.enter(self.phase)
        names = dict.fromkeys((*self.before, *self.phases))
        return {name: self.before.get(name, 0.0) + self.phases.get(name, 0.0) for name in names}

    def reading(self, judged: str) -> float:
        """What a clock shows now."""
        seconds = self.seconds()
        core = seconds.get("score", 0.0) + seconds.get("adapt", 0.0)
        return core if judged == "core" else sum(seconds.values())

    def forecast(self, done: int, of: int) -> float:
        """What the clock that counts will show at the end if all goes on as it has since the first score; 0 as long as
        too little is known.
        """
        if self.first_s is None or done < FORECAST * of:
            return 0.0
        core = self.reading("core")
        return self.reading(self.judged) + core * (of - done) / done

    def too_slow(self, done: int, of: int) -> bool:
        """Whether the budget will not suffice, as things go."""
        return 0 < self.budget_s < self.forecast(done, of)

    def document(self) -> dict[str, Any]:
        """For the score document."""
        shown = {f"{name}_s": round(self.reading(name), 3) for name in CLOCKS}
        kept = not self.budget_s or self.reading(self.judged) <= self.budget_s
        return {"judged": self.judged, "budget_s": self.budget_s, **shown, "kept": kept}


def judge(document: dict[str, Any], judged: str) -> None:
    """RuleError if a complete pass took longer than its budget, by the clock that counts."""
    clock = document["clock"]
    if clock["budget_s"] and clock[f"{judged}_s"] > clock["budget_s"]:
        other = ", or judge it by --clock core" if judged == "strict" else ""
        raise RuleError(
            f"scoring took {clock[f'{judged}_s']:.1f} s by the {judged} clock, the budget is {clock['budget_s']:g} s",
            f"{document['stage']}.budget_seconds",
            f"the score is written; for no limit set {document['stage']}.budget_seconds=0{other}",
        )
