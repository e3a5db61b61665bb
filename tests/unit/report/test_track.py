"""Trackers show what happens and can neither stop nor slow a run."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pgolf.core.errors import ConfigError, SetupError
from pgolf.report.watch import track
from pgolf.report.watch.track import WAITING, check_trackers, numbers_of, tracking

STEP = {
    "event": "step", "step": 5, "loss": 3.5, "elapsed_s": 2.0, "shown": True,
    "grad_norms": {"matrix": 0.5, "token": None}, "lr": {"matrix": 0.02},
}  # fmt: skip
FAKE = """
class Run:
    def __init__(self, **options): self.options, self.rows, self.finished = options, [], False
    def log(self, numbers, step): self.rows.append((step, numbers))
    def finish(self): self.finished = True
runs = []
def init(**options):
    runs.append(Run(**options))
    return runs[-1]
def log(numbers, step): runs[-1].log(numbers, step)
def finish(): runs[-1].finish()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(name, source) -> a package of that name, from a folder of its own."""

    def make(name: str, source: str = FAKE) -> None:
        (tmp_path / "packages").mkdir(exist_ok=True)
        (tmp_path / "packages" / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)

    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield make
    for name in track.TRACKERS:
        sys.modules.pop(name, None)


def test_numbers_of_events() -> None:
    assert numbers_of(STEP) == {
        "step/loss": 3.5, "step/elapsed_s": 2.0, "step/grad_norms/matrix": 0.5, "step/lr/matrix": 0.02,
    }  # fmt: skip
    assert numbers_of(STEP | {"shown": False}) == {}
    assert numbers_of({"event": "val", "step": 9, "val_bpb": 1.25}) == {"val/val_bpb": 1.25}
    for kind in ("start", "stop", "loop", "neighbours"):
        assert numbers_of({"event": kind, "step": 1, "elapsed_s": 2.0}) == {}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_is_shown(package: Any, tmp_path: Path, name: str) -> None:
    package(name)
    check_trackers([name])
    warnings: list[str] = []
    with tracking([name, name], tmp_path / "a" / "train", {"train": {"seed": 7}}, warnings.append) as show:
        show(STEP)
        show({"event": "val", "step": 5, "val_bpb": 1.25})
        show({"event": "stop", "step": 5})
    (run,) = sys.modules[name].runs
    assert run.options["project"] == "pgolf" and run.options["name"] == "a"
    assert run.options["config"] == {"train.seed": 7}
    assert run.rows == [(5, numbers_of(STEP)), (5, {"val/val_bpb": 1.25})]
    assert run.finished and warnings == []


def test_tensorboard_has_its_files(package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package("tensorboard", "")
    rows: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            rows.append(folder)

        def add_text(self, name: str, text: str) -> None:
            rows.append((name, text))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            rows.append((name, value, step))

        def close(self) -> None:
            rows.append("closed")

    fake = type(sys)("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    check_trackers(["tensorboard"])
    with tracking(["tensorboard"], tmp_path, {"train": {"seed": 7}}, rows.append) as show:
        show(STEP)
    assert rows[0] == str(tmp_path / "tensorboard") and "train.seed: 7" in rows[1][1]
    assert ("step/loss", 3.5, 5) in rows and rows[-1] == "closed"


def test_real_tensorboard_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    warnings: list[str] = []
    with tracking(["tensorboard"], tmp_path, {}, warnings.append) as show:
        show(STEP)
    assert warnings == [] and list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("moment", ["import", "init", "log", "finish"])
def test_a_tracker_that_raises_is_switched_off_with_one_warning(package: Any, tmp_path: Path, moment: str) -> None:
    broken = {
        "import": "raise OSError('no library')",
        "init": FAKE + "\ndef init(**options): raise RuntimeError('no key\\nmore')",
        "log": FAKE + "\nRun.log = None",
        "finish": FAKE + "\ndef quit(self): raise SystemExit('gone')\nRun.finish = quit",
    }
    package("wandb", broken[moment])
    warnings: list[str] = []
    with tracking(["wandb"], tmp_path, {}, warnings.append) as show:
        for _ in range(3):
            show(STEP)
    (warning,) = warnings
    assert warning.startswith("wandb failed and was switched off, training goes on: ") and "\n" not in warning


def test_a_tracker_that_hangs_slows_nothing_and_is_left_behind(package: Any, tmp_path: Path) -> None:
    package(
        "wandb", FAKE + "\nimport threading\ngate = threading.Event()\ndef wait(*_, **__): gate.wait()\nRun.log = wait"
    )
    package("trackio")
    warnings: list[str] = []
    start = time.monotonic()
    with tracking(["wandb", "trackio"], tmp_path, {}, warnings.append, wait_s=0.3) as show:
        for _ in range(WAITING + 50):
            show(STEP)
    assert time.monotonic() - start < 30
    assert [warning for warning in warnings if warning.startswith("wandb")] == [
        "wandb does not answer and was left behind"
    ]
    assert sys.modules["trackio"].runs[0].rows, "another tracker is not held up"
    sys.modules["wandb"].gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith("track "):
            thread.join(30)


def test_a_slow_tracker_loses_events_and_says_so(package: Any, tmp_path: Path) -> None:
    late = (
        "\ngate = __import__('threading').Event()\nbegin = init\ndef init(**o):\n    gate.wait()\n    return begin(**o)"
    )
    package("wandb", FAKE + late)
    warnings: list[str] = []
    with tracking(["wandb"], tmp_path, {}, warnings.append) as show:
        for _ in range(WAITING + 7):
            show(STEP)
        while "wandb" not in sys.modules or not hasattr(sys.modules["wandb"], "gate"):
            time.sleep(0.01)
        threading.Timer(0.3, sys.modules["wandb"].gate.set).start()
    assert warnings == ["wandb was too slow; 8 events were not shown"], "the end takes a place too"
    (run,) = sys.modules["wandb"].runs
    assert len(run.rows) == WAITING - 1 and run.finished


def test_what_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'pgolf\[trackio\]'"):
        check_trackers(["trackio"])
    with pytest.raises(ConfigError, match=r"no tracker 'mlflow'.*tensorboard, wandb, trackio"):
        check_trackers(["mlflow"])


def test_no_tracker_is_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with tracking([], tmp_path, {}, print) as show:
        show(STEP)
        assert threading.active_count() == before
