"""The audit's checks on evaluators whose faults are known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.accounting import Size
from pgolf.audit.bench import Level
from pgolf.audit.checks.replay import check_replay
from pgolf.audit.checks.size import check_size
from pgolf.audit.engine import examine
from pgolf.audit.legal import legal_subject
from pgolf.audit.reduced import reduced
from pgolf.audit.specimens.base import Specimen
from pgolf.audit.specimens.matrix import SCORERS, TARGETS, WINDOW, cases, judged
from pgolf.audit.specimens.model import VOCABULARY, small_model, specimen_subject
from pgolf.audit.specimens.passes import PreEvalTtt
from pgolf.audit.stream import PHRASE, drawn_stream, plain_vocabulary, text_stream
from pgolf.audit.subject import InProcess
from pgolf.audit.trace import blank
from pgolf.audit.verdict import HOLDS, UNTESTED, VIOLATED, Finding, f95, missing, violations
from pgolf.config.load import resolve
from pgolf.core.errors import InputError, RuleError
from pgolf.core.evals.ledger import evaluate

SMALL = Level(name="test", targets=TARGETS, flips=2, flips_total=12, sweeps=4, values=VOCABULARY)
QUICK_ROWS = (
    "slot-scored",
    "slot-context per batch",
    "last epoch scored",
    "hash-backoff per rank",
    "tilt-leaky",
    "min-of-passes",
    "early sliding window list",
    "val temperature fit",
    "warm-up on val, discarded",
    "warm-up on val, kept",
    "content decides the order",
    "phones home",
    "reads another file",
    "prefix-sidecar",
    "prequant-ttt",
    "10,000-document export",
    "oversize in 2^20 units",
    "legal: sliding",
    "legal: document, cache, tilt",
    "legal: ttt chunk, sgd",
    "legal: bytes, transform caseops_v1",
    "legal: training alone",
)
"""Rows of the matrix that every test run tries; `pgolf audit specimens` tries all of them."""


def stream(seed: int = 0) -> Any:
    """A short stream."""
    return drawn_stream(plain_vocabulary(VOCABULARY), TARGETS, WINDOW, seed)


@pytest.mark.parametrize("name", QUICK_ROWS)
@pytest.mark.fault(row="F30")
def test_the_matrix_holds(name: str) -> None:
    case = next(case for case in cases() if case.name == name)
    got, right = judged(case, 3)
    assert right, f"{name}: caught by {got or 'nothing'}, must be by {case.caught or 'nothing'}"


def test_every_row_of_the_specification_is_there() -> None:
    names = {case.name for case in cases()}
    assert len(names) == len(list(cases()))
    assert {one.name for one in cases() if one.source == "our own"} >= {"batch-size dependent", "seed from the target"}
    assert sum(case.source == "our own" for case in cases()) >= 5
    assert all(set(specimen.caught) <= set("0abcdefghijk") for specimen in SCORERS.values())


def test_an_audited_ledger_gives_no_score() -> None:
    """Specimens cannot produce a reportable score, and say why."""

    class Reporting(Specimen):
        def run(self, ledger: Any) -> None:
            super().run(ledger)
            ledger.total()

    trial = specimen_subject(Reporting, 0).run(stream().tokens)
    assert "gives no score" in trial.error
    assert (trial.commits == 1).all()


@pytest.mark.parametrize("specimen", SCORERS.values(), ids=SCORERS)
def test_no_ledger_that_gives_a_score_takes_a_specimen(specimen: type[Specimen]) -> None:
    """Whatever it would do there."""
    tokens = stream().tokens
    with pytest.raises(RuleError, match="a specimen of the audit gets no score") as caught:
        evaluate(small_model(0), tokens, np.ones(len(tokens) - 1, np.int64), specimen())  # type: ignore[arg-type]
    assert ("It breaks: (" in caught.value.what) == bool(specimen.caught)


def test_a_recorded_ledger_shows_private_tokens_through_the_gate() -> None:
    """A method that reaches for them is seen."""

    class Reaching(Specimen):
        def run(self, ledger: Any) -> None:
            self.seen = int(ledger._tokens[7])
            super().run(ledger)

    trial = specimen_subject(Reaching, 0).run(stream().tokens)
    assert trial.events == [("look", 7, 8, 0)] and [target for target, _ in trial.late] == [6]


def test_the_documents_count_the_rows() -> None:
    text = " ".join((Path(__file__).parents[3] / "docs" / "legality.md").read_text().split())
    count = sum(bool(case.caught) for case in cases())
    assert f"{count} methods, byte counts, trainings and sizes that break a rule" in text
    assert f"and {len(list(cases())) - count} that break none" in text


def test_specimens_are_in_no_catalog() -> None:
    from pgolf.catalog import CATALOG

    assert not any("audit" in where for slot in CATALOG.values() for where in slot.values())


def test_the_counterexample_is_a_single_edit_and_replays() -> None:
    from pgolf.audit.again import play

    found = examine(specimen_subject(PreEvalTtt, 1), stream(1), SMALL, 1, "0abc")
    by_name = {finding.check: finding for finding in found}
    assert violations(found) == ["a", "b", "c"]
    for name in "abc":
        case = by_name[name].counterexample
        assert case is not None
        assert play(case, "test")["violated"]
    edit = by_name["a"].counterexample["edit"]  # type: ignore[index]
    assert stream(1).tokens[edit["position"]] == edit["from"] != edit["to"]
    clean = dict(
        by_name["a"].counterexample or {}, subject={"kind": "legal", "name": "plain", "seed": 1, "targets": 240}
    )
    assert not play(clean, "test")["violated"]


def test_what_is_looked_at_is_noted_and_layout_is_free() -> None:
    seen: dict[str, Any] = {}

    class Looking(Specimen):
        def run(self, ledger: Any) -> None:
            seen["begins"] = np.flatnonzero(ledger.tokens[:-1] == 1)
            seen["events"] = len(ledger.trial.events)
            seen["three"] = ledger.tokens[5:9][1:].__array__()
            super().run(ledger)

    subject, one = specimen_subject(Looking, 0), stream()
    trial = subject.run(one.tokens)
    assert seen["events"] == 0 and (seen["begins"] == one.begins).all()
    assert (seen["three"] == one.tokens[6:9]).all()
    assert trial.events == [("look", 6, 9, 0)]
    assert [target for target, _ in trial.late] == [5, 6, 7]


def test_a_noisy_evaluator_is_statistical_and_a_loud_one_untested() -> None:
    finding, _, noise = check_replay(specimen_subject(SCORERS["unsteady"], 0), stream())
    assert finding.verdict == "STATISTICAL" and 0 < noise < 1e-4

    class Loud(Specimen):
        def distort(self, ledger: Any, position: int, logp_SV: Any, ids_T: Any) -> Any:
            return (logp_SV + torch.from_numpy(np.random.default_rng().normal(size=logp_SV.shape)).float()).log_softmax(
                -1
            )

    found = {finding.check: finding for finding in examine(specimen_subject(Loud, 0), stream(), SMALL, 0, "0abcd")}
    assert found["a"].verdict == found["b"].verdict == UNTESTED
    assert "differ by" in found["a"].what


def test_ranks_in_threads_score_as_one() -> None:
    subject = legal_subject("ttt lora", 0, TARGETS)
    alone, two = subject.run(stream().tokens), subject.variants()["2 ranks"].run(stream().tokens)
    assert np.isfinite(two.nll).all()
    assert np.abs(alone.nll - two.nll).max() < 1e-5


def test_an_error_on_one_rank_ends_the_others() -> None:
    class Failing(Specimen):
        def run(self, ledger: Any) -> None:
            if ledger.watch.world.rank == 1:
                raise RuleError("broken", "test")
            super().run(ledger)

    trial = specimen_subject(Failing, 0).variants()["2 ranks"].run(stream().tokens)
    assert "broken" in trial.error


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_streams_have_documents_and_phrases_twice(seed: int) -> None:
    one = drawn_stream(plain_vocabulary(64), 600, 32, seed)
    lengths = np.diff(np.append(one.begins, len(one.tokens)))
    assert (one.tokens[one.begins] == 1).all() and (one.tokens == 1).sum() == len(one.begins)
    assert lengths.min() <= 5 and lengths.max() > 96
    for first, second in one.planted:
        assert (one.tokens[first : first + PHRASE] == one.tokens[second : second + PHRASE]).all() and first < second
    targets = np.arange(one.targets)
    assert (one.begins[one.document_of(targets)] <= targets + 1).all()


def test_a_text_without_words_is_refused() -> None:
    with pytest.raises(InputError, match="too short"):
        text_stream(np.ones(50, np.int64), 1, 100, 32, 0)


def test_methods_are_made_small_with_their_ratios() -> None:
    method = resolve("ttt_pr1493", ["eval.method=sliding"]).config.ttt
    small, changes = reduced(method, 640)
    assert small.seq_len == 80 and small.chunk_tokens == max(640 // 6, 80)
    assert small.stride == max(method.stride * 80 // method.seq_len, 1)
    assert changes["seq_len"] == [method.seq_len, 80] and "lr" not in changes


def test_figures_of_a_verdict() -> None:
    assert math.isclose(f95(300) or 0, 0.00994, rel_tol=1e-2)
    assert f95(0) is None
    holds, broken = (Finding(check="a", verdict=verdict, what="", n=5) for verdict in (HOLDS, VIOLATED))
    assert holds.f95 is not None and broken.f95 is None
    assert missing([holds], "ab") == ["b"] and violations([holds, broken]) == ["a"]


def test_a_later_commit_counts() -> None:
    trial = blank(3)
    trial.rank[:] = [5, 1, 3]
    assert trial.before(0).tolist() == [1, 2] and trial.before(1).tolist() == []


def test_the_subject_is_fresh_each_run() -> None:
    """A method that changes the model does not change the next run."""
    subject = specimen_subject(PreEvalTtt, 0)
    assert isinstance(subject, InProcess)
    assert (subject.run(stream().tokens).nll == subject.run(stream().tokens).nll).all()


def test_files_that_stay_are_seen(tmp_path: Path) -> None:
    from pgolf.audit.sandbox import watched

    with watched() as reached:
        (tmp_path / "left.txt").write_text("x")
        Path(tmp_path / "left.txt").read_text()
    assert reached.written == reached.read == [str(tmp_path / "left.txt")]
    assert reached.foreign() == reached.read and reached.foreign((tmp_path,)) == []
    reached.written.append("/opt/elsewhere")
    assert reached.kept() == ["/opt/elsewhere"]


def test_denied_files_cannot_be_opened(tmp_path: Path) -> None:
    from pgolf.audit.sandbox import watched

    path = tmp_path / "val.bin"
    path.write_bytes(b"x")
    with watched(denied=(path,)) as reached, pytest.raises(PermissionError):
        path.read_bytes()
    assert reached.refused == [str(path)] and path.read_bytes() == b"x"


def test_flips_on_two_ranks_replay() -> None:
    """Some flips are made on two ranks, and a counterexample from there runs again."""
    from pgolf.audit.again import play
    from pgolf.audit.checks.causality import ON_RANKS

    level = Level(name="test", targets=TARGETS, flips=1, flips_total=0, sweeps=1, values=2)
    clean = examine(legal_subject("sliding, cache", 0, TARGETS), stream(), level, 0, "0a")[1]
    assert clean.verdict == HOLDS and 0 < clean.figures["flips"]["on 2 ranks"]["n"] <= ON_RANKS
    broken = examine(specimen_subject(PreEvalTtt, 0), stream(), level, 0, "0a")[1]
    assert broken.verdict == VIOLATED and broken.figures["flips"]["on 2 ranks"]["moved"] > 0
    case = dict(broken.counterexample or {})
    case["subject"] = {"kind": "specimen", "name": "PreEvalTtt", "seed": 0, "world_size": 2}
    assert play(case, "test")["violated"]


def test_every_way_to_score_is_audited() -> None:
    """Methods and adjusters of the catalog all have a row of their own among the legal ones."""
    from pgolf.audit.legal import LEGAL
    from pgolf.catalog import CATALOG

    said = {word for _, sets in LEGAL.values() for word in sets}
    slots = {"EvalRope": "eval.rope", "EvalSlot": "eval.slot", "EvalBias": "eval.bias", "EvalCache": "eval.cache"}
    slots |= {"EvalTemperature": "eval.temperature", "EvalMixer": "eval.mixer", "EvalTilt": "eval.tilt"}
    slots |= {"EvalMethod": "eval.method", "TttMethod": "ttt.method"}
    for slot, key in slots.items():
        usual = {"none", "as_trained"}
        assert {f"{key}={name}" for name in CATALOG[slot] if name not in usual} <= said, slot
    optimizers = {f"ttt.optimizer={name}" for name in CATALOG["TttOptimizer"]} - {"ttt.optimizer=sgd"}
    assert optimizers <= said


@pytest.mark.parametrize(("name", "letter"), [("phones home", "h"), ("reads another file", "g")])
def test_what_a_method_reaches_for_replays(name: str, letter: str) -> None:
    from pgolf.audit.again import play

    found = {one.check: one for one in examine(specimen_subject(SCORERS[name], 0), stream(), SMALL, 0, "0ghi")}
    case = found[letter].counterexample
    assert case is not None and play(case, "test")["violated"]


def test_damaged_counterexamples_are_refused() -> None:
    from pgolf.audit.again import play

    case = {"schema": "pgolf.counterexample/1", "property": "a", "tokens": [1, 2, 3]}
    plain = {"kind": "legal", "name": "plain", "seed": 0, "targets": 240}
    for broken in (
        [],
        {"schema": "other"},
        case,
        case | {"subject": plain},
        case | {"subject": {"kind": "specimen", "name": "Nobody", "seed": 0}},
        case | {"subject": plain, "property": "z"},
        case | {"subject": plain, "edit": {"position": 99, "to": 1, "from": 2}, "target": 0, "tolerance": 0},
    ):
        with pytest.raises(InputError):
            play(broken, "test")


@pytest.mark.parametrize(
    ("over", "verdict", "binary"),
    [
        (-16_000_000, HOLDS, False),
        (-1, HOLDS, False),
        (0, HOLDS, False),
        (1, VIOLATED, True),
        (16 * 2**20 - 16_000_000, VIOLATED, True),
        (16 * 2**20 - 15_999_999, VIOLATED, False),
    ],
)
def test_a_submission_may_be_as_large_as_the_cap_and_no_larger(over: int, verdict: str, binary: bool) -> None:
    size = Size(artifact_bytes=15_000_000 + min(over + 1_000_000, 0), code_bytes=max(over + 1_000_000, 0))
    assert size.total_bytes == 16_000_000 + over
    found = check_size(size, " (so)", "again")
    assert found.verdict == verdict and found.figures == size.document()
    assert found.what.startswith(size.line() + " (so)") and ("would fit 16,777,216" in found.what) == binary
    assert (found.counterexample is None) == (verdict == HOLDS)
