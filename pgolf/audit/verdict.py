"""What an audit says of one property, and of all of them (spec: legality 4, 5)."""

from dataclasses import dataclass, field
from typing import Any

VIOLATED, HOLDS, STATISTICAL, UNTESTED = "PROVED-VIOLATED", "NOT-VIOLATED", "STATISTICAL", "NOT-TESTED"
CASE_SCHEMA = "pgolf.counterexample/1"
PROPERTIES = {
    "0": "same scores when run again",
    "a": "a score depends on earlier tokens only",
    "b": "probabilities of all tokens sum to at most 1",
    "c": "scored before anything learns from it",
    "d": "every target scored exactly once, in an order that content does not decide",
    "e": "no validation data before evaluation",
    "f": "bytes are those of the text",
    "g": "the artifact is all that is read, and fits",
    "h": "no network",
    "i": "no validation token before the clock starts",
    "j": "batches and ranks do not change scores",
    "k": "whether documents depend on each other (a label)",
}
"""The properties by letter."""
MANDATORY = {"artifact": "0gh", "quick": "0abcdf", "full": "0abcdefghij", "real": "0abcdefghij"}
"""Those without which an audit does not pass, by level."""
LIMITS = (
    "Sampling gives confidence, not proof of absence: n trials without a violation leave it possible in a share of f95 "
    "of all cases, with 95 % confidence.",
    "Runs on short streams test the procedure, not how the weights came to be.",
    "A program that recognises an audit can behave while it lasts.",
    "No ruling of the organisers is known for some methods; see the rules' confidence.",
)
"""What every report says of itself."""


def broken(letters: str) -> str:
    """These properties in words."""
    return "; ".join(f"({letter}) {PROPERTIES[letter]}" for letter in letters)


def f95(trials: int) -> float | None:
    """The share of violating cases that so many clean trials exclude with 95 % confidence."""
    return 1 - 0.05 ** (1 / trials) if trials else None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict on one property: of how many trials, with which figures, and what proves a violation."""

    check: str
    verdict: str
    what: str
    n: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    counterexample: dict[str, Any] | None = None

    @property
    def f95(self) -> float | None:
        """The share of violating cases excluded, where none was found."""
        return f95(self.n) if self.verdict == HOLDS else None

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "property": self.check,
            "title": PROPERTIES[self.check],
            "verdict": self.verdict,
            "what": self.what,
            "n": self.n,
            "f95": self.f95,
            "figures": self.figures,
            "counterexample": self.counterexample,
        }


def case_of(check: str, subject: dict[str, Any], replay: str = "", **facts: Any) -> dict[str, Any]:
    """A counterexample: of which property, about what, the command that shows it again if that is not `pgolf audit
    replay` of its file, and what proves it.
    """
    shown = {"replay": replay} if replay else {}
    return {"schema": CASE_SCHEMA, **shown, "property": check, "subject": subject, **facts}


def untested(name: str, reason: str) -> Finding:
    """A property that could not be tested."""
    return Finding(check=name, verdict=UNTESTED, what=reason)


def violations(findings: list[Finding]) -> list[str]:
    """The properties proved violated."""
    return [finding.check for finding in findings if finding.verdict == VIOLATED]


def missing(findings: list[Finding], mandatory: str) -> list[str]:
    """Properties that had to be tested and were not."""
    tested = {finding.check for finding in findings if finding.verdict != UNTESTED}
    return [name for name in mandatory if name not in tested]
