"""A run's events shown by TensorBoard, Weights & Biases or trackio, none of which can stop or slow it."""

import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pgolf.config.tree import flatten
from pgolf.core.errors import ConfigError, SetupError

WAITING = 1000
"""Events a tracker may be behind; more are dropped."""
WAIT_S = 10.0
"""How long the end of a run waits for its trackers, all of them together."""


class Tracker(Protocol):
    """Shows numbers by name and step."""

    def show(self, numbers: dict[str, float], step: int) -> None:
        """Take numbers of one step."""

    def close(self) -> None:
        """No more will come."""


class TensorBoard:
    """Event files below the run's directory, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def show(self, numbers: dict[str, float], step: int) -> None:
        """One scalar each."""
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)

    def close(self) -> None:
        """Flush the files."""
        self.writer.close()


class WeightsAndBiases:
    """A run of project pgolf; where its data goes is decided by `wandb login` and that package's own settings."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        import wandb

        self.run: Any = wandb.init(project="pgolf", name=name, dir=str(folder), config=settings)

    def show(self, numbers: dict[str, float], step: int) -> None:
        """One row."""
        self.run.log(numbers, step=step)

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


class Trackio:
    """A run of project pgolf in trackio's local database."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        import trackio

        self.trackio: Any = trackio
        trackio.init(project="pgolf", name=name, config=settings)

    def show(self, numbers: dict[str, float], step: int) -> None:
        """One row."""
        self.trackio.log(numbers, step=step)

    def close(self) -> None:
        """Write what is left."""
        self.trackio.finish()


TRACKERS: dict[str, Callable[[Path, str, dict[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""Name of a tracker, of its package and of pgolf's extra -> what makes it: the run's directory, name and settings."""


def check_trackers(names: list[str]) -> None:
    """ConfigError for an unknown tracker, SetupError for one that is not installed. Imports none of them."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"there is no tracker {name!r}", "--track", f"trackers are {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise SetupError(
                f"the package {name} is missing", f"--track {name}", f"pip install 'pgolf[{name}]', or leave it out"
            )


def numbers_of(event: dict[str, Any]) -> dict[str, float]:
    """The numbers of an event by the names trackers show: `step/loss`, `step/grad_norms/matrix`, `val/val_bpb`. None of
    events that are not shown, or are neither steps nor validations.
    """
    kind = event["event"]
    if kind not in ("step", "val", "average") or not event.get("shown", True):
        return {}
    found = {}
    for key, value in event.items():
        for name, number in value.items() if isinstance(value, dict) else [("", value)]:
            if type(number) in (int, float) and key != "step":
                found["/".join(filter(None, (kind, key, name)))] = number
    return found


class Following:
    """One tracker on a thread of its own, with a bounded queue. Its first error is told once and switches it off."""

    def __init__(self, name: str, make: Callable[[], Tracker], warn: Callable[[str], None]) -> None:
        self.name, self.warn = name, warn
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING)
        self.dropped, self.failed = 0, False
        self.thread = threading.Thread(target=self.follow, args=(make,), name=f"track {name}", daemon=True)
        self.thread.start()

    def follow(self, make: Callable[[], Tracker]) -> None:
        """The thread."""
        try:
            tracker = make()
            while (event := self.events.get()) is not None:
                if numbers := numbers_of(event):
                    tracker.show(numbers, event["step"])
            tracker.close()
        except BaseException as error:
            self.failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.warn(f"{self.name} failed and was switched off, training goes on: {reason}")

    def event(self, event: dict[str, Any]) -> None:
        """Hand an event over; one that finds the queue full is dropped."""
        try:
            self.events.put_nowait(event)
        except queue.Full:
            self.dropped += 1

    def end(self) -> None:
        """No more will come. In a full queue the end takes the place of an event."""
        while True:
            try:
                return self.events.put_nowait(None)
            except queue.Full:
                with suppress(queue.Empty):
                    self.events.get_nowait()
                    self.dropped += 1

    def finish(self, seconds: float) -> None:
        """Wait for the thread, at most so long, and say what was lost."""
        self.thread.join(seconds)
        if self.thread.is_alive():
            self.warn(f"{self.name} does not answer and was left behind")
        elif self.dropped and not self.failed:
            self.warn(f"{self.name} was too slow; {self.dropped} events were not shown")


@contextmanager
def tracking(
    names: Sequence[str], folder: Path, settings: dict[str, Any], warn: Callable[[str], None], wait_s: float = WAIT_S
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What hands an event of the run in `folder` to every tracker, waiting for none; the end waits a while for all."""
    place = folder.resolve()
    title = place.parent.name if place.name == "train" else place.name
    flat = flatten(settings)
    following = [Following(name, partial(TRACKERS[name], folder, title, flat), warn) for name in dict.fromkeys(names)]

    def show(event: dict[str, Any]) -> None:
        for one in following:
            one.event(event)

    try:
        yield show
    finally:
        deadline = time.monotonic() + wait_s
        for one in following:
            one.end()
        for one in following:
            one.finish(max(deadline - time.monotonic(), 0.0))
