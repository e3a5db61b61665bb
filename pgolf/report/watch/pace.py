"""Tokens seen against tokens planned: what a run lost to stalls."""

from typing import Any

LEAST_MEASURED, LEAST_STEPS = 5, 20
"""Measurements, and steps in them, below which nothing is said about the usual time of a step."""
ENOUGH = 0.9
"""Share of the planned tokens below which a run is remarked upon."""
QUEUED_STEPS = 20
"""Steps measured together where nothing makes the host wait for its GPU in each: it runs ahead by up to a few steps, so
that single ones seem to take no time, or that of several.
"""


class Pace:
    """How many tokens a run would have seen at its own usual speed. That is the median time of its steps, found anew
    where the schedule changes what a step is (a `mode` event), times the seconds of the training clock. A stall, be it
    slow data, a neighbour or a compilation, makes few steps slow and leaves the median as it is; a machine that is slow
    throughout is not noticed.

    `step` and `elapsed_s` are where this process begins, `before` the tokens planned up to there. `together` steps are
    measured at once.
    """

    def __init__(self, batch_tokens: int, step: int, elapsed_s: float, before: float, together: int = 1) -> None:
        self.batch_tokens, self.before, self.together = batch_tokens, before, together
        self.last = step, elapsed_s
        self.stretches: list[list[tuple[int, float]]] = [[]]

    def passed(self, step: int, elapsed_s: float) -> None:
        """Take note of a step that is done, by the host's clock."""
        if step - self.last[0] >= self.together:
            self.reached(step, elapsed_s)

    def reached(self, step: int, elapsed_s: float) -> None:
        """Measure what has passed since the last time. If that is no step, it is what the last ones left to do: an
        average, or what a device had not done when the host was.
        """
        steps, seconds = step - self.last[0], elapsed_s - self.last[1]
        self.last, stretch = (step, elapsed_s), self.stretches[-1]
        count, spent = stretch.pop() if stretch and not steps else (0, 0.0)
        stretch.append((count + steps, spent + seconds))

    def event(self, event: dict[str, Any]) -> None:
        """Take note of an event of the training loop. Choosing an average takes time in which no step could be."""
        if event["event"] == "average":
            self.last = event["step"], event["elapsed_s"]
        else:
            self.reached(event["step"], event["elapsed_s"])
        if event["event"] == "mode":
            self.stretches.append([])

    def planned(self) -> float:
        """Tokens at the usual speed so far."""
        return self.before + sum(usual_steps(stretch) for stretch in self.stretches) * self.batch_tokens


def usual_steps(stretch: list[tuple[int, float]]) -> float:
    """Steps that fit into the time of a stretch at its median seconds per step; those it had, if that is not known."""
    steps, seconds = sum(count for count, _ in stretch), sum(spent for _, spent in stretch)
    measured = [pair for pair in stretch if pair[0]]
    usual = 0.0
    if len(measured) >= LEAST_MEASURED and steps >= LEAST_STEPS:
        reached = 0
        for count, spent in sorted(measured, key=lambda pair: pair[1] / pair[0]):
            reached += count
            usual = spent / count
            if 2 * reached >= steps:
                break
    return max(seconds / usual, steps) if usual else steps


def tokens_planned(pace: Pace, reason: str, iterations: int) -> int:
    """What a run was to see: all its iterations where these ended it, what its budget allows at its usual speed where
    the clock did, and never more than all its iterations.
    """
    most = iterations * pace.batch_tokens
    return most if reason == "iterations" else min(round(pace.planned()), most)


def shortfall(seen: int, planned: int) -> list[str]:
    """A remark on a run that saw too few of its tokens."""
    if seen >= ENOUGH * planned:
        return []
    return [
        f"saw {seen:,} of {planned:,} planned tokens ({seen / planned:.0%}): steps stalled, "
        "so this is not what the budget gives on a free machine"
    ]
