"""Pareto fronts and means over seeds, against other ways to compute them."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pgolf.sweep.summary import Group, front, groups, means, short_names, varying

POINTS = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=20)


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether a point is better in one way and worse in none."""
    return one != other and one[0] <= other[0] and one[1] <= other[1]


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    expected = {index for index, point in enumerate(points) if not any(beats(other, point) for other in points)}
    assert set(front(points)) == expected
    assert [points[index][0] for index in front(points)] == sorted(points[index][0] for index in expected)


def run(lr: float, seed: int, bpb: float) -> dict[str, Any]:
    """A finished training run's row."""
    return {
        "key": f"{lr} {seed}",
        "cell": f"{lr} {seed}",
        "sweep": "train",
        "preset": "tiny",
        "state": "done",
        "settings": {"optim.matrix.lr": lr, "train.seed": seed},
        "inputs": {},
        "scored_on": {},
        "figures": {"bpb": bpb},
        "seconds": {"train": 2.0, "cell": 5.0},
    }


def test_means_and_errors_are_those_of_scipy() -> None:
    scores = {0.02: [2.01, 2.05, 2.04], 0.04: [1.98, 1.97, 2.03, 2.0], 0.08: [2.5]}
    rows = [run(lr, seed, bpb) for lr, some in scores.items() for seed, bpb in enumerate(some)]
    (group,) = groups(rows)
    best, second, third = means(group)
    assert [mean.settings["optim.matrix.lr"] for mean in (best, second, third)] == [0.04, 0.02, 0.08]
    for mean in (best, second):
        sample = scores[mean.settings["optim.matrix.lr"]]
        assert mean.mean == pytest.approx(sum(sample) / len(sample))
        assert mean.deviation == pytest.approx(stats.tstd(sample))
        assert mean.error == pytest.approx(stats.sem(sample))
        assert mean.seeds == list(range(len(sample)))
    welch = stats.ttest_ind(scores[0.02], scores[0.04], equal_var=False)
    assert second.behind_se is not None
    assert second.behind / second.behind_se == pytest.approx(welch.statistic)
    assert best.behind == 0 and best.behind_se is None
    assert third.deviation is None and third.error is None and third.behind_se is None
    assert third.behind == pytest.approx(0.505) and third.seconds == 2.0


def test_failed_runs_are_no_part_of_a_mean() -> None:
    broken = {**run(0.02, 3, 0.0), "state": "failed", "error": {"what": "nan"}}
    (mean,) = means(Group("train", {}, {}, [run(0.02, 1, 2.0), run(0.02, 2, 2.2), broken]))
    assert mean.mean == pytest.approx(2.1) and math.isclose(mean.deviation or 0, math.sqrt(0.02))


def test_only_what_was_scored_alike_is_compared() -> None:
    rows = [run(0.02, 1, 2.0), {**run(0.02, 1, 2.0), "scored_on": {"split": "val"}}, run(0.04, 1, 2.0)]
    assert [len(group.rows) for group in groups(rows)] == [2, 1]


@given(st.lists(st.from_regex(r"[ab](\.[abc]){0,3}", fullmatch=True), unique=True, max_size=8))
def test_short_names_tell_keys_apart(keys: list[str]) -> None:
    names = short_names(keys)
    assert len(set(names.values())) == len(keys)
    assert all(f".{key}".endswith(f".{name}") for key, name in names.items())


def test_short_names_keep_the_section_of_a_choice() -> None:
    keys = ["quant.mlp.bits", "quant.attn.bits", "compress.method", "optim.matrix.lr"]
    assert list(short_names(keys).values()) == ["mlp.bits", "attn.bits", "compress.method", "lr"]


def test_columns_are_what_varies() -> None:
    assert varying([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 3, "c": 0}]) == ["b", "c"]
    assert varying([{"a": 1, "b": 2}]) == ["a", "b"]
