"""What a campaign found."""

from dataclasses import dataclass, field
from typing import Self


@dataclass
class Outcome:
    """Rounds done, what was wrong, and what else is to be told."""

    rounds: int = 0
    bad: list[str] = field(default_factory=list)
    said: str = ""

    def saying(self, text: str) -> Self:
        """Itself, with a remark."""
        self.said = text
        return self

    def text(self) -> str:
        """One cell of a table."""
        found = f"{len(self.bad)} wrong" if self.bad else "nothing wrong"
        return f"{found}; {self.said}" if self.said else found
