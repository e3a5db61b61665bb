"""Graphs that torch.compile makes while the training clock runs, and why."""

from typing import Any


class Recompiles:
    """Notices compilations after the moment at which it was made. torch keeps a record of its last 64, which `news`
    must be asked for before more have come.
    """

    def __init__(self) -> None:
        self.known: list[Any] = []
        self.news()

    def news(self) -> list[dict[str, str]]:
        """Compilations since the last call: `function`, and `reason`, which guard failed, or that it is the first."""
        from torch._dynamo.utils import get_compilation_metrics

        before, self.known, found = set(map(id, self.known)), get_compilation_metrics(), []
        for one in self.known:
            if id(one) in before or one.co_name is None:  # a backward pass, which belongs to a forward one
                continue
            reason = " ".join((one.recompile_reason or "first compilation").split())
            found.append({"function": f"{one.co_name} (line {one.co_firstlineno})", "reason": reason})
        return found
