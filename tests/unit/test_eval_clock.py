"""The clocks of an evaluation, on a clock that the test winds."""

import itertools
from typing import Any

import numpy as np
import pytest

from pgolf.core.dist import World
from pgolf.core.errors import RuleError
from pgolf.core.evals.ledger import evaluate
from pgolf.core.evals.plain import PlainEval
from pgolf.core.evals.sliding import SlidingEval
from pgolf.core.ttt.chunk import ChunkTtt
from pgolf.report.console import Console, ProgressLine
from pgolf.stages.compare import gain_over
from pgolf.stages.eval_clock import EvalClock, judge
from pgolf.stages.eval_partial import PartialLedger
from pgolf.stages.eval_positions import Positions, document_starts, load_positions, save_positions
from pgolf.stages.eval_watch import ScoringWatch

TOKENS = np.random.default_rng(0).integers(2, 60, 400)
CHARGES = np.full(399, 2, np.uint16)
TTT = ChunkTtt(seq_len=16, stride=8, chunk_tokens=16, lr=0.05, epochs=1, train_seqs=2)


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


def interrupted(model: Any, method: Any, partial: PartialLedger, lots: int) -> None:
    """An evaluation that saves after every lot and ends after so many."""

    class Ending(ScoringWatch):
        count = 0

        def advanced(self, ledger: Any) -> None:
            self.saved_s = -100.0
            super().advanced(ledger)
            self.count += 1
            if self.count == lots:
                raise Killed

    timer = EvalClock(0.0, "strict", 0.0, ticking(0.01))
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
