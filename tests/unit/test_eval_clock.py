"""The clocks of an evaluation, on a clock that the test winds."""

import itertools
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pgolf.core.dist import World
from pgolf.core.errors import RuleError
from pgolf.core.evals.context_slot import SlotAdamW
from pgolf.core.evals.document import DocumentEval
from pgolf.core.evals.ledger import Ledger, evaluate
from pgolf.core.evals.plain import PlainEval
from pgolf.core.evals.sliding import SlidingEval
from pgolf.core.model.gpt import GPT
from pgolf.core.ttt.chunk import ChunkTtt
from pgolf.core.ttt.lora import LoraTtt
from pgolf.core.ttt.phased import PhasedTtt
from pgolf.core.ttt.weights import WeightTraining
from pgolf.report.console import Console, ProgressLine
from pgolf.stages.compare import gain_over
from pgolf.stages.eval_clock import EvalClock, judge
from pgolf.stages.eval_partial import PartialLedger
from pgolf.stages.eval_positions import Positions, document_starts, load_positions, save_positions
from pgolf.stages.eval_watch import ScoringWatch
from pgolf.stages.evaluate import warn_of_little

TOKENS = np.random.default_rng(0).integers(2, 60, 400)
CHARGES = np.full(399, 2, np.uint16)
SLOT = SlidingEval(seq_len=16, stride=4, batch_seqs=5, slot=SlotAdamW(steps=2, lr=0.1))
TTT = ChunkTtt(seq_len=16, stride=8, chunk_tokens=16, lr=0.05, epochs=1, train_seqs=2)


LORA = LoraTtt(seq_len=48, chunk_tokens=4, rank=2, batch_seqs=4, lr=0.01, eps=1e-6)
BASE = WeightTraining(chunk_tokens=48, lr=0.01, epochs=1, train_seqs=1)
PHASED = PhasedTtt(**vars(LORA) | {"phases": 2, "prefix_docs": 8, "base": BASE})
UNEVEN = {
    "lora": LORA,
    "phased": PHASED,
    "longest first": replace(PHASED, order="longest"),
    "documents": DocumentEval(seq_len=48, stride=4, batch_seqs=4),
}
"""What scores the longest documents first, whose targets cost most."""


def documents() -> tuple[np.ndarray, np.ndarray]:
    """Three documents of 120 to 140 tokens among sixty of 6 to 9, and byte charges."""
    lengths = [6 + place % 4 for place in range(60)]
    lengths[5], lengths[20], lengths[40] = 120, 130, 140
    draw = np.random.default_rng(1)
    tokens = np.concatenate([[1, *draw.integers(2, 60, length - 1)] for length in lengths])
    return tokens, np.full(len(tokens) - 1, 2, np.uint16)


@pytest.fixture
def computing(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that goes on by a second for every 1000 input positions that a model computes."""
    time, forward = SimpleNamespace(now=0.0), GPT.hidden

    def hidden(self: GPT, ids: Any, *more: Any, **others: Any) -> Any:
        time.now += ids.numel() / 1000
        return forward(self, ids, *more, **others)

    monkeypatch.setattr(GPT, "hidden", hidden)
    return time


def timed(time: SimpleNamespace, model: GPT, method: Any, budget: float) -> tuple[ScoringWatch, np.ndarray]:
    """The watch and the losses of an evaluation by such a clock."""
    time.now = 0.0
    watch = watching(EvalClock(budget, "strict", 0.0, lambda: time.now))
    _, ledger = evaluate(model, *documents(), method, watch)
    return watch, ledger.losses


def wound(*moments: float) -> EvalClock:
    """A clock that shows these moments, one per look."""
    return EvalClock(10.0, "strict", 0.0, iter(moments).__next__)


def ticking(step: float) -> Any:
    """A clock that goes on by a step with every look."""
    return itertools.count(0.0, step).__next__


def watching(timer: EvalClock, partial: PartialLedger | None = None) -> ScoringWatch:
    """A watch without a terminal."""
    return ScoringWatch("eval", timer, Console(quiet=True), ProgressLine(None), World(), partial)


def test_phases_add_up_to_the_strict_clock_and_core_leaves_out_what_was_before() -> None:
    timer = wound(3, 4, 6, 7, *[7.5] * 3)
    for phase in ("prepare", "score", "adapt", "score"):
        timer.enter(phase)
    assert timer.seconds() == {"load": 3, "prepare": 1, "score": 2.5, "adapt": 1}
    assert timer.reading("strict") == 7.5
    assert timer.reading("core") == 3.5


def test_a_forecast_needs_a_twentieth_of_the_targets() -> None:
    timer = EvalClock(10.0, "strict", 0.0, [2.0].pop)
    assert timer.forecast(50, 100) == 0.0, "nothing has been scored"
    timer = wound(2, *[4] * 9)
    timer.enter("score")
    assert timer.forecast(4, 100) == 0.0
    assert timer.forecast(10, 100) == pytest.approx(2 + 2 * 10)
    timer.judged = "core"
    assert timer.forecast(10, 100) == pytest.approx(2 * 10)


def test_what_an_interrupted_pass_spent_counts() -> None:
    timer = wound(2, *[4] * 9)
    timer.before = {"load": 1.0, "score": 5.0}
    timer.enter("score")
    assert timer.reading("strict") == 10 and timer.reading("core") == 7


@pytest.mark.parametrize(("judged", "refused"), [("strict", True), ("core", False)])
def test_a_pass_is_judged_by_the_clock_that_is_asked_for(judged: str, refused: bool) -> None:
    clock = {"budget_s": 10.0, "strict_s": 11.0, "core_s": 9.0}
    document = {"stage": "eval", "clock": clock}
    if refused:
        with pytest.raises(RuleError, match=r"11.0 s by the strict clock, the budget is 10 s.*budget_seconds=0"):
            judge(document, judged)
    else:
        judge(document, judged)
    judge({"stage": "eval", "clock": clock | {"budget_s": 0.0}}, judged)


def test_adaptation_ends_when_the_budget_will_not_suffice_and_scoring_goes_on(tiny_model: Any) -> None:
    timer = EvalClock(5.0, "strict", 0.0, ticking(0.1))
    watch = watching(timer)
    score, ledger = evaluate(tiny_model, TOKENS, CHARGES, TTT, watch)
    assert score.tokens == 399
    assert watch.stopped_at is not None and 0.05 * 399 <= watch.stopped_at < 100
    assert any("no adaptation after" in text for text in watch.console.warnings)
    still = evaluate(tiny_model, TOKENS, CHARGES, SlidingEval(seq_len=16, stride=8))[1].losses
    after = watch.stopped_at + 8
    np.testing.assert_allclose(ledger.losses[after:], still[after:], atol=1e-5)


@pytest.mark.parametrize("budget", [0.0, 1e9])
def test_adaptation_goes_on_while_there_is_time(tiny_model: Any, budget: float) -> None:
    watch = watching(EvalClock(budget, "strict", 0.0, ticking(0.1)))
    evaluate(tiny_model, TOKENS, CHARGES, TTT, watch)
    assert watch.stopped_at is None and watch.console.warnings == []
    assert watch.timer.phases["adapt"] > 0


@pytest.mark.parametrize("name", UNEVEN)
def test_a_pass_that_fits_is_not_forecast_to_be_too_slow(
    name: str, make_model: Any, tiny_config: Any, computing: Any
) -> None:
    method, models = UNEVEN[name], (make_model(tiny_config) for _ in range(3))
    alone, whole = timed(computing, next(models), method, 0.0)
    took = computing.now
    assert alone.work_done == alone.work == pytest.approx(1000 * took)
    watch, losses = timed(computing, next(models), method, 1.05 * took)
    assert watch.stopped_at is None and watch.console.warnings == []
    assert losses.tobytes() == whole.tobytes()
    # Less than it takes is noticed, and early.
    watch, _ = timed(computing, next(models), method, 0.9 * took)
    assert watch.console.warnings
    if name != "documents":
        assert watch.stopped_at is not None and watch.adapter_steps < 0.3 * alone.adapter_steps


@pytest.mark.parametrize(
    "method",
    [
        replace(PHASED, prefix_docs=63),
        replace(PHASED, prefix_docs=100, phases=4, order="longest"),
        replace(PHASED, base=replace(BASE, chunk_tokens=5000)),
        replace(PHASED, base=replace(BASE, epochs=2)),
    ],
)
def test_what_is_announced_is_done(tiny_model: Any, computing: Any, method: Any) -> None:
    watch, _ = timed(computing, tiny_model, method, 0.0)
    assert watch.work_done == watch.work == pytest.approx(1000 * computing.now)


def test_tuning_counts_as_adaptation(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    time, tuned = SimpleNamespace(now=0.0), SlotAdamW.tuned

    def slowly(*given: Any) -> Any:
        time.now += 1
        return tuned(*given)

    monkeypatch.setattr(SlotAdamW, "tuned", slowly)
    timer = EvalClock(0.0, "strict", 0.0, lambda: time.now)
    evaluate(tiny_model, TOKENS, CHARGES, SLOT, watching(timer))
    assert timer.seconds()["adapt"] == time.now > 10
    assert timer.seconds()["score"] == 0


@pytest.mark.parametrize(
    ("method", "weights", "phases", "warned"),
    [
        (TTT, 24, 24, ""),
        (replace(TTT, train_seqs=1, epochs=2), 48, 24, ""),
        (replace(TTT, chunk_tokens=48, epochs=3), 8 * 2 * 3, 8, ""),
        (replace(TTT, chunk_tokens=1000), 0, 0, "nothing was learned"),
        (LORA, 0, 0, ""),
        (replace(LORA, chunk_tokens=48, seq_len=150), 0, 0, ""),
        (replace(PHASED, prefix_docs=20), 3 + 5, 2, ""),
        (PHASED, 3, 1, "learned in 1 of 2 phases"),
        (replace(PHASED, prefix_docs=100), 15, 1, "learned in 1 of 2 phases"),
        (replace(PHASED, base=replace(BASE, chunk_tokens=5000)), 0, 0, "learned in 0 of 2 phases, documents or tokens"),
        (replace(PHASED, prefix_docs=20, base=replace(BASE, epochs=0)), 0, 0, "0 of 2 phases, which have no epochs"),
    ],
)
def test_what_was_learned_is_counted_and_too_little_is_told(
    tiny_model: Any, method: Any, weights: int, phases: int, warned: str
) -> None:
    watch = watching(EvalClock(0.0, "strict", 0.0, ticking(0.01)))
    tokens, charges = documents() if isinstance(method, LoraTtt) else (TOKENS, CHARGES)
    evaluate(tiny_model, tokens, charges, method, watch)
    warn_of_little(watch, method, len(charges))
    found = watch.learning()
    assert (found["phases"], found["weight_steps"]) == (phases, weights)
    assert (found["adapter_steps"] > 0) == isinstance(method, LoraTtt)
    assert len(watch.console.warnings) == bool(warned) and warned in "".join(watch.console.warnings)


def test_a_fixed_method_that_will_be_too_slow_is_told_of_once(tiny_model: Any) -> None:
    watch = watching(EvalClock(3.0, "strict", 0.0, ticking(1.0)))
    evaluate(tiny_model, TOKENS, CHARGES, PlainEval(seq_len=16, batch_seqs=1), watch)
    assert len([text for text in watch.console.warnings if "its budget is 3 s" in text]) == 1


def test_progress_has_the_bpb_so_far_and_the_time_to_go(tiny_model: Any) -> None:
    lines = []

    class Listening(ScoringWatch):
        def advanced(self, ledger: Any) -> None:
            lines.append(self.text(ledger))

    timer = EvalClock(0.0, "strict", 0.0, ticking(1.0))
    watch = Listening("eval plain", timer, Console(quiet=True), ProgressLine(None), World())
    score, _ = evaluate(tiny_model, TOKENS, CHARGES, PlainEval(seq_len=16, batch_seqs=5), watch)
    assert len(lines) == 5 and "80 of 399" in lines[0] and "ETA" in lines[0]
    assert f"BPB {score.bpb:.4f}" in lines[-1] and "ETA 0:00" in lines[-1]


# The ledger on disk


class Killed(Exception):
    """Stands in for a signal."""


def interrupted(model: Any, method: Any, partial: PartialLedger, lots: int, budget: float = 0.0) -> None:
    """An evaluation that saves after every lot and ends after so many."""

    class Ending(ScoringWatch):
        count = 0

        def advanced(self, ledger: Any) -> None:
            self.saved_s = -100.0
            super().advanced(ledger)
            self.count += 1
            if self.count == lots:
                raise Killed

    timer = EvalClock(budget, "strict", 0.0, ticking(0.01))
    watch = Ending("eval", timer, Console(quiet=True), ProgressLine(None), World(), partial)
    watch.resume(len(TOKENS) - 1)
    with pytest.raises(Killed):
        evaluate(model, TOKENS, CHARGES, method, watch)


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_bits(tiny_model: Any, tmp_path: Any) -> None:
    method = SlidingEval(seq_len=16, stride=4, batch_seqs=5)
    whole = evaluate(tiny_model, TOKENS, CHARGES, method)[1].losses
    partial = PartialLedger(tmp_path / "score.json.ledger", "key")
    interrupted(tiny_model, method, partial, 3)
    interrupted(tiny_model, method, partial, 4)
    found = partial.load(399)
    assert found is not None and int(np.isfinite(found[0]).sum()) == 16 + 7 * 5 * 4 - 4
    watch = watching(EvalClock(0.0, "strict", 0.0, ticking(0.01)), partial)
    watch.resume(399)
    asked = []
    forward = tiny_model.nll
    tiny_model.nll = lambda *given: (asked.append(len(given[0])), forward(*given))[1]
    _, ledger = evaluate(tiny_model, TOKENS, CHARGES, method, watch)
    assert ledger.losses.tobytes() == whole.tobytes()
    assert sum(asked) == len(range(0, 399 - 12, 4)) - 7 * 5, "windows that were known are not scored again"
    assert watch.document()["resumed_at"] == 16 + 7 * 5 * 4 - 4
    assert watch.timer.before["score"] > 0


def test_what_was_tuned_before_a_kill_and_what_is_tuned_after_it_are_of_one_kind(
    make_model: Any, tiny_config: Any, tmp_path: Any
) -> None:
    watch = watching(EvalClock(1e9, "strict", 0.0, ticking(0.01)))
    whole = evaluate(make_model(tiny_config), TOKENS, CHARGES, SLOT, watch)[1].losses
    budget = 1.5 * watch.timer.now()
    partial = PartialLedger(tmp_path / "score.json.ledger", "key")
    interrupted(make_model(tiny_config), SLOT, partial, 12, budget)
    watch = watching(EvalClock(budget, "strict", 0.0, ticking(0.01)), partial)
    watch.resume(399)
    assert watch.first > 200 and watch.stopped_at is None
    losses = evaluate(make_model(tiny_config), TOKENS, CHARGES, SLOT, watch)[1].losses
    assert watch.stopped_at is None and losses.tobytes() == whole.tobytes()


def test_where_tuning_ended_before_a_kill_it_stays_ended(make_model: Any, tiny_config: Any, tmp_path: Any) -> None:
    partial = PartialLedger(tmp_path / "score.json.ledger", "key")
    interrupted(make_model(tiny_config), SLOT, partial, 12, 2.0)
    found = partial.load(399)
    assert found is not None and found[2] is not None and 0.05 * 399 < found[2] < 200
    watch = watching(EvalClock(1e9, "strict", 0.0, ticking(0.01)), partial)
    watch.resume(399)
    losses = evaluate(make_model(tiny_config), TOKENS, CHARGES, SLOT, watch)[1].losses
    assert watch.document()["adaptation_stopped_at"] == found[2]
    bare = evaluate(make_model(tiny_config), TOKENS, CHARGES, SlidingEval(seq_len=16, stride=4, batch_seqs=5))[1].losses
    np.testing.assert_allclose(losses[found[2] :], bare[found[2] :], atol=1e-5)


@pytest.mark.parametrize(("cost", "saves", "shown"), [(0.0, 10, 200), (2.0, 1, 1), (0.3, 6, 7)])
def test_saving_and_showing_take_little_of_the_time(
    tiny_model: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, cost: float, saves: int, shown: int
) -> None:
    """A hundred seconds of scoring, and how often either was done that costs so much."""
    time, counts = SimpleNamespace(now=0.0), Counter[str]()

    def costly(name: str) -> Any:
        def work(*given: Any) -> str:
            counts[name] += 1
            time.now += cost
            return ""

        return work

    monkeypatch.setattr(PartialLedger, "save", costly("save"))
    monkeypatch.setattr(ScoringWatch, "text", costly("show"))
    ledger = Ledger(tiny_model, TOKENS, CHARGES, PlainEval())
    for partial, live in ((PartialLedger(tmp_path / "ledger", "key"), None), (None, SimpleNamespace(update=str))):
        time.now = 0.0
        timer = EvalClock(0.0, "strict", 0.0, lambda: time.now)
        watch = ScoringWatch("eval", timer, Console(quiet=True), ProgressLine(live), World(), partial)
        watch.told_s = np.inf
        while time.now < 100:
            time.now += 0.25
            watch.advanced(ledger)
    assert (counts["save"], counts["show"]) == (saves, shown)


@pytest.mark.parametrize("damage", ["key", "targets", "bit", "schema"])
def test_another_evaluations_ledger_is_never_mixed_in(tiny_model: Any, tmp_path: Any, damage: str) -> None:
    path = tmp_path / "score.json.ledger"
    partial = PartialLedger(path, "key")
    interrupted(tiny_model, SlidingEval(seq_len=16, stride=4, batch_seqs=5), partial, 3)
    targets = 399
    if damage == "key":
        partial = PartialLedger(path, "another")
    elif damage == "targets":
        targets = 398
    else:
        content = bytearray(path.read_bytes())
        place = content.index(b"pgolf.ledger/1") + 13 if damage == "schema" else len(content) - 3
        content[place] ^= 2
        path.write_bytes(content)
    assert partial.load(targets) is None


# Files of positions, gains


def test_positions_come_back(tmp_path: Any) -> None:
    tokens = np.array([1, 5, 6, 1, 7, 1, 8, 9, 9])
    made = Positions(
        np.arange(8, dtype=np.float32), np.full(8, 3, np.uint16), document_starts(tokens), {"key": "k", "method": {}}
    )
    save_positions(tmp_path / "p.safetensors", made)
    found = load_positions(tmp_path / "p.safetensors")
    assert found.nats.tolist() == made.nats.tolist() and found.bytes.tolist() == [3] * 8
    assert found.documents.tolist() == [0, 3, 5] and found.facts["key"] == "k"


def test_a_gain_and_its_error_over_documents(rng: np.random.Generator) -> None:
    starts, charges = np.arange(0, 400, 20), rng.integers(1, 5, 400)
    base = rng.random(400).astype(np.float32)
    other = (base - 0.1 * charges * np.log(2)).astype(np.float32)
    gain, error = gain_over(base, other, charges, starts)
    assert gain == pytest.approx(0.1, rel=1e-5) and error == pytest.approx(0, abs=1e-6)
    noisy = other + np.repeat(rng.normal(0, 1, 20), 20) * charges
    gain, error = gain_over(base, noisy, charges, starts)
    sums = np.array([(base - noisy)[a : a + 20].sum() for a in starts]) / np.log(2)
    size = np.array([charges[a : a + 20].sum() for a in starts])
    draws = rng.integers(0, 20, (4000, 20))
    boot = sums[draws].sum(1) / size[draws].sum(1)
    assert gain == pytest.approx(sums.sum() / size.sum(), rel=1e-5)
    assert error == pytest.approx(boot.std(), rel=0.12)
    assert gain_over(base, other, charges, starts[:1])[1] is None
