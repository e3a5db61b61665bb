"""Curves of runs: what is read from events, resumed and broken files included, and what lines are made of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.core.errors import ConfigError, InputError
from pgolf.report.curves import common_name, lines_of, picture_files, read_curves, read_runs, smoothed

START = {"event": "start", "schema": "pgolf.events/1", "config": {"train": {"batch_tokens": 10, "seed": 1}}}


def step(number: int, loss: float, seconds: float = -1.0) -> dict[str, Any]:
    """A step event."""
    return {"event": "step", "step": number, "loss": loss, "elapsed_s": number / 2 if seconds < 0 else seconds}


def val(number: int, bpb: float, kind: str = "val") -> dict[str, Any]:
    """A validation event."""
    return {"event": kind, "step": number, "val_bpb": bpb, "elapsed_s": number / 2}


def write(folder: Path, *events: dict[str, Any] | str, seed: int = 1) -> Path:
    """A run directory with these events or raw lines."""
    folder.mkdir(parents=True, exist_ok=True)
    start = {**START, "config": {"train": {"batch_tokens": 10, "seed": seed}}}
    lines = [event if isinstance(event, str) else json.dumps(event) + "\n" for event in (start, *events)]
    (folder / "events.jsonl").write_text("".join(lines))
    return folder


def test_a_run_is_read_and_summed_up(tmp_path: Path) -> None:
    end = {"event": "stop", "step": 2, "elapsed_s": 1.0, "reason": "iterations", "notes": ["slow"]}
    write(tmp_path / "r" / "train", val(0, 3.0), step(1, 5.0), step(2, 4.5), val(2, 2.0), val(2, 1.5, "average"), end)
    for place in (tmp_path / "r", tmp_path / "r" / "train", tmp_path / "r" / "train" / "events.jsonl"):
        curves = read_curves(place)
        assert curves.label == "r"
        assert curves.loss == [(1, 0.5, 5.0), (2, 1.0, 4.5)]
        assert curves.bpb == [(0, 0.0, 3.0), (2, 1.0, 2.0)] and curves.averaged == [(2, 1.0, 1.5)]
        summary = curves.summary()
        assert (summary["tokens"], summary["last_loss"], summary["last_bpb"], summary["lowest_bpb"]) == (
            20,
            4.5,
            1.5,
            1.5,
        )
        assert (summary["ended"], summary["notes"], summary["seed"]) == ("iterations", ["slow"], 1)


def test_steps_done_again_count_once_and_lost_ones_not_at_all(tmp_path: Path) -> None:
    killed = [step(1, 5.0), step(2, 4.0), val(2, 2.5), step(3, 3.9), step(4, 3.8), val(4, 2.4), step(5, 3.7)]
    again = [val(2, 2.6), step(3, 3.5), '{"event": "step", "st', *[step(4, 3.4)]]
    curves = read_curves(write(tmp_path / "r", *killed, *again))
    assert [row[2] for row in curves.loss] == [5.0, 4.0, 3.5, 3.4], "what came behind half a line counts"
    assert [(row[0], row[2]) for row in curves.bpb] == [(2, 2.6)]
    assert curves.end == {}
    write(tmp_path / "r", *killed, step(3, 3.5), step(4, 3.4), val(4, 2.2), '{"event": "step", "step": 5, "lo')
    assert [(row[0], row[2]) for row in read_curves(tmp_path / "r").bpb] == [(2, 2.5), (4, 2.2)]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_resumed_runs_read_like_straight_ones(tmp_path_factory: pytest.TempPathFactory, stops: list[int]) -> None:
    """A run that is killed after some steps and goes back to a multiple of three, again and again, then ends at 20."""
    events, start = [], 0
    for stop in [*stops, 20]:
        reached = start
        for number in range(start + 1, min(start + stop, 19) + 1 if stop != 20 else 21):
            events += [step(number, 10.0 - number), *([val(number, number / 2)] if number % 4 == 0 else [])]
            reached = number
        start = reached - reached % 3
    curves = read_curves(write(tmp_path_factory.mktemp("run"), *events))
    assert curves.loss == [(number, number / 2, 10.0 - number) for number in range(1, 21)]
    assert curves.bpb == [(number, number / 2, number / 2) for number in range(4, 21, 4)]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no events\.jsonl"):
        read_curves(tmp_path)
    (tmp_path / "events.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="first line"):
        read_curves(tmp_path)
    with pytest.raises(InputError, match="nothing has been trained"):
        read_curves(write(tmp_path / "empty"))
    with pytest.raises(InputError, match="line 2"):
        read_curves(write(tmp_path / "bad", {"event": "step", "step": "x", "loss": 1.0, "elapsed_s": 0.0}))


def test_old_events_have_no_tokens(tmp_path: Path) -> None:
    write(tmp_path / "r", step(1, 2.0))
    path = tmp_path / "r" / "events.jsonl"
    path.write_text('{"event": "start", "schema": "pgolf.events/1"}\n' + path.read_text().split("\n", 1)[1])
    curves = read_curves(tmp_path / "r")
    assert curves.summary()["tokens"] is None and curves.at(curves.loss[0], "seconds") == 0.5
    with pytest.raises(InputError, match="how many tokens"):
        lines_of([curves], "loss", "tokens", 1, False)


def test_equal_names_become_paths(tmp_path: Path) -> None:
    places = [write(tmp_path / name / "train", step(1, 2.0)) for name in ("a", "b")]
    assert [run.label for run in read_runs(places)] == ["a", "b"]
    places = [write(tmp_path / name / "same", step(1, 2.0)) for name in ("a", "b")]
    assert [run.label for run in read_runs(places)] == [str(place) for place in places]


@given(st.lists(st.floats(0, 10), min_size=1), st.integers(2, 20))
def test_smoothing_stays_within_what_it_smooths(values: list[float], span: int) -> None:
    found = smoothed(values, span)
    assert len(found) == len(values) and found[0] == pytest.approx(values[0])
    for index, value in enumerate(found):
        assert min(values[: index + 1]) - 1e-9 <= value <= max(values[: index + 1]) + 1e-9


def test_seeds_become_one_line(tmp_path: Path) -> None:
    one = write(tmp_path / "a_s1", step(1, 5.0), step(2, 4.0), step(3, 2.0), seed=1)
    two = write(tmp_path / "a_s2", step(1, 7.0), step(3, 4.0), seed=2)
    other = write(tmp_path / "b", step(1, 1.0))
    path = other / "events.jsonl"
    path.write_text(path.read_text().replace('"batch_tokens": 10', '"batch_tokens": 20'))
    runs = read_runs([one, other, two])
    found = lines_of(runs, "loss", "tokens", 1, True)
    assert [line.label for line in found if line] == ["a, 2 seeds", "b"]
    line = found[0]
    assert line is not None and line.x == [10, 20, 30]
    assert (line.y, line.low, line.high) == ([6.0, 4.75, 3.0], [5.0, 4.0, 2.0], [7.0, 5.5, 4.0])
    assert lines_of(runs, "bpb", "step", 1, True) == [None, None]
    assert len(lines_of(runs, "loss", "step", 1, False)) == 3


def test_names_of_groups() -> None:
    assert common_name(["lr0.02_s1", "lr0.02_s22"]) == "lr0.02, 2 seeds"
    assert common_name(["x-seed1337", "x-seed42"]) == "x, 2 seeds" == common_name(["x1", "x2"])
    assert common_name(["red", "blue", "green"]) == "red, 3 seeds"


def test_files_by_their_endings() -> None:
    both = [Path("x/a.png"), Path("x/a.svg")]
    assert picture_files([Path("x/a")]) == both == picture_files([*both, both[0]])
    with pytest.raises(ConfigError, match=r"neither \.png nor \.svg"):
        picture_files([Path("a.pdf")])
