"""What `pgolf report` shows of a run: one page from its manifests, events, scores, artifact and audits."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from pgolf.accounting import bpb_of
from pgolf.audit.report import REPORT, line_of, read_report
from pgolf.config.tree import flatten
from pgolf.core.errors import InputError, PgolfError
from pgolf.core.files import read_bytes
from pgolf.report.artifact_page import bytes_section
from pgolf.report.chart import Bar, Line, bar_chart, line_chart
from pgolf.report.curves import Curves, read_curves
from pgolf.report.page import Section, html_table, page
from pgolf.stages.manifest import notes_of, read_entries
from pgolf.stages.model_files import MAX_ARTIFACT, load_artifact
from pgolf.submission.entries import (
    PLACES,
    QUANTIZED,
    STAGES,
    commands,
    dataset_record,
    figures_in,
    figures_of,
    places,
    quantization_of,
)
from pgolf.submission.gather import Scored, scores_in

WORDS = {
    "tokenize": "Tokenize",
    "train": "Train",
    "quantize": "Quantize",
    "compress": "Compress",
    "eval": "Evaluate",
    "ttt": "Test-time training",
    "package": "Package",
}
FORMS = {"float": 4, "quantized": 1, "artifact": 0}
"""Form of a scored model -> the tone of its bar."""
ROLE_TONES = {"embed": 1, "attn": 0, "mlp": 2, "head": 3}


@dataclass(frozen=True)
class Run:
    """A run's folder, or a submission's, or an artifact with nothing around it."""

    path: Path

    @property
    def root(self) -> Path:
        """Where to look."""
        return self.path if self.path.is_dir() else self.path.resolve().parent

    def name(self, path: Path) -> str:
        """A file's name within it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else path.name

    @cached_property
    def artifact(self) -> Path | None:
        """Its artifact, if there is one."""
        if not self.path.is_dir():
            return self.path
        found = [self.path / place for place in PLACES if (self.path / place).is_file()]
        return found[0] if found else None

    @cached_property
    def outputs(self) -> list[tuple[str, Path, dict[str, Any]]]:
        """Stage, file and manifest entry of every output on record, in the order of the stages; each once."""
        order = [*STAGES, "package", "import"]
        found = {}
        if record := dataset_record(self.root):
            found[self.root / "data"] = ("tokenize", self.root / "data" / "manifest.json", record)
        for place in (*places(self.root), self.root / "submission"):
            for name, entry in read_entries(place).items():
                if isinstance(entry, dict) and entry.get("stage") in order:
                    found[place / name] = (str(entry["stage"]), place / name, entry)
        return sorted(found.values(), key=lambda row: (order.index(row[0]), str(row[1])))

    @cached_property
    def scores(self) -> list[Scored]:
        """Its scores, float models first."""
        order = list(FORMS)
        return sorted(
            scores_in(self.root) if self.path.is_dir() else [],
            key=lambda one: (order.index(one.form) if one.form in order else 9, one.stage, one.method),
        )

    @cached_property
    def curves(self) -> Curves | None:
        """Its training, if it has one."""
        try:
            return read_curves(self.root) if self.path.is_dir() else None
        except InputError:
            return None

    @cached_property
    def tensors(self) -> list[dict[str, Any]]:
        """What quantization told of every tensor."""
        made = figures_in(quantization_of(self.artifact)) if self.artifact else {}
        found = (made or figures_of(self.root, "quantize", QUANTIZED)).get("tensors")
        return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def seconds_text(seconds: float) -> str:
    """A time for people."""
    return f"{seconds:.1f} s" if seconds < 120 else str(datetime.timedelta(seconds=round(seconds)))


def noted(run: Run) -> str:
    """Remarks on the training, to stand below tables that its figures are in."""
    found = [note for stage, _, entry in run.outputs if stage == "train" for note in notes_of(entry.get("figures"))]
    return "".join(f'<p class="note"><b>Note: {escape(note)}.</b></p>' for note in dict.fromkeys(found))


def pipeline(run: Run) -> Section | None:
    """Every stage's output with its time, bytes and result."""
    rows: list[list[str | int | float]] = []
    for stage, path, entry in run.outputs:
        figures = entry.get("figures") if isinstance(entry.get("figures"), dict) else {}
        assert isinstance(figures, dict)
        seconds = entry.get("seconds") if isinstance(entry.get("seconds"), dict) else {}
        assert isinstance(seconds, dict)
        rows.append(
            [
                WORDS.get(stage, stage),
                run.name(path),
                seconds_text(float(seconds.get("total", 0.0))),
                int(entry.get("bytes", 0)),
                result_of(figures),
                str(entry.get("date", ""))[:19].replace("T", " "),
            ]
        )
    if not rows:
        return None
    table = html_table(["stage", "file", "time", "bytes", "result", "made (UTC)"], rows)
    return Section("Pipeline", table + noted(run))


def result_of(figures: dict[str, Any]) -> str:
    """The figure of a stage that one looks for first."""
    if isinstance(figures.get("tokens"), dict):
        return " + ".join(f"{count:,} {name}" for name, count in figures["tokens"].items()) + " tokens"
    score = figures["score"] if isinstance(figures.get("score"), dict) else figures
    for key, form in (("total_bytes", "{:,} bytes with the script"), ("gap_bpb", "{:+.5f} BPB by quantization")):
        if isinstance(figures.get(key), int | float):
            return form.format(figures[key])
    for key in ("bpb", "val_bpb", "bpb_partial"):
        if isinstance(score.get(key), int | float):
            return f"{score[key]:.5f} BPB"
    return ""


def training(run: Run) -> Section | None:
    """Loss of the batches and BPB of validation over the steps."""
    curves = run.curves
    if curves is None:
        return None
    loss = [(float(step), value) for step, _, value in curves.loss]
    bpb = [(float(step), value) for step, _, value in curves.bpb]
    averaged = [(float(step), value) for step, _, value in curves.averaged]
    parts = [
        "<h3>Training loss, nats per token</h3>" if loss else "",
        line_chart([Line("loss of each batch", 0, loss)], "optimizer steps", "Training loss"),
        "<h3>Validation, bits per byte</h3>" if bpb else "",
        line_chart(
            [Line("validation BPB", 1, bpb, dots=True), Line("averaged weights", 2, averaged, dots=True)],
            "optimizer steps",
            "Validation BPB",
        ),
    ]
    facts = curves.summary()
    tokens = f", {facts['tokens']:,} tokens" if facts["tokens"] else ""
    ended = f"; ended by {facts['ended']}" if facts["ended"] else ""
    spent = curves.end.get("seconds") if isinstance(curves.end.get("seconds"), dict) else {}
    rows: list[list[str | int | float]] = [[phase, float(value)] for phase, value in (spent or {}).items() if value]
    note = f'<p class="note">{facts["steps"]:,} steps{tokens}, {seconds_text(facts["seconds"])}{escape(ended)}.</p>'
    ledger = "<h3>Where the time went</h3>" + html_table(["phase", "seconds"], rows) if rows else ""
    return Section("Training", note + noted(run) + "".join(parts) + ledger)


def treemap_of_bytes(run: Run) -> Section | None:
    """The artifact's bytes."""
    if run.artifact is None:
        return None
    return bytes_section(load_artifact(run.artifact), read_bytes(run.artifact, MAX_ARTIFACT))


def quantization(run: Run) -> Section | None:
    """How far every tensor is from its float, and what it costs."""
    rows = [row for row in run.tensors if isinstance(row.get("relative_error"), int | float)]
    if not rows:
        return None

    def bars(key: str, form: str) -> list[Bar]:
        return [
            Bar(str(row["name"]), float(row[key]), format(float(row[key]), form), ROLE_TONES.get(str(row["role"]), 5))
            for row in rows
            if isinstance(row.get(key), int | float)
        ]

    note = (
        '<p class="note">The relative error is |W - W\'|² / |W|²; that of outputs is weighed by what inputs the '
        "calibration saw. Colours are roles.</p>"
    )
    parts = ["<h3>Relative error of weights</h3>", bar_chart(bars("relative_error", ".3g"), "Relative error")]
    if outputs := bars("output_error", ".3g"):
        parts += ["<h3>Relative error of outputs</h3>", bar_chart(outputs, "Output error")]
    parts += ["<h3>Entropy of the codes, bits per weight</h3>", bar_chart(bars("entropy_bits", ".3f"), "Entropy")]
    return Section("Quantization by tensor", note + "".join(parts))


def evaluation(run: Run) -> Section | None:
    """All scores, as bars above the best and as a table."""
    if not run.scores:
        return None
    values = [bpb_of(one.document["score"]) for one in run.scores]
    margin = (max(values) - min(values)) or 0.01 * max(values)
    bars = [Bar(one.view, value, f"{value:.5f}", FORMS.get(one.form, 5)) for one, value in zip(run.scores, values)]
    rows: list[list[str | int | float]] = [
        [
            one.view,
            f"{value:.6f}" + (f" (of {one.document['share']:.1%})" if one.document["partial"] else ""),
            f"{one.document['score']['val_loss']:.6f}",
            int(one.document["score"]["tokens"]),
            int(one.document["score"]["bytes"]),
            seconds_text(float(one.document["seconds"]["total"])),
            str(one.document.get("device", "")),
        ]
        for one, value in zip(run.scores, values)
    ]
    columns = ["model and method", "BPB", "nats per token", "targets", "bytes", "time", "device"]
    note = '<p class="note">Bars begin below the best score, not at zero.</p>'
    body = bar_chart(bars, "Scores in BPB", least=min(values) - 0.25 * margin) + note
    return Section("Evaluation", body + html_table(columns, rows) + noted(run))


def audits(run: Run) -> Section | None:
    """Verdicts of the audits that the scores carry, and of those whose reports lie in the run."""
    found: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {}
    for one in run.scores:
        audit = one.document.get("audit")
        if isinstance(audit, dict) and isinstance(audit.get("findings"), dict):
            rows = [(name, line_of(row)) for name, row in audit["findings"].items()]
            found[str(audit["id"])] = (audit, rows)
    for path in sorted(run.root.glob(f"*/{REPORT}")) if run.path.is_dir() else ():
        try:
            report = read_report(path)
        except PgolfError:
            continue
        rows = [(f"{row['property']} {row['title']}", line_of(row)) for row in report["findings"]]
        found[str(report["id"])] = (report, rows)
    if not found and not run.scores:
        return None
    if not found:
        return Section("Audit", "<p>The scores are unaudited: <code>pgolf audit run</code> tests them.</p>")
    body = ""
    for name, (audit, rows) in found.items():
        body += (
            f"<p>Audit {escape(name)}, level {escape(str(audit['level']))}: <b>{escape(str(audit['verdict']))}</b></p>"
        )
        body += html_table(["property", "verdict"], [list(row) for row in rows])
    return Section("Audit", body)


def provenance(run: Run) -> Section | None:
    """Who made it with what: versions, machine, commit, commands, hashes, and the whole configuration."""
    if not run.outputs:
        return None
    _, _, last = run.outputs[-1]
    facts: list[list[str | int | float]] = [
        [f"version of {name}", str(value)] for name, value in (last.get("versions") or {}).items()
    ]
    facts += [[name, str(value)] for name, value in (last.get("hardware") or {}).items()]
    if last.get("git_commit"):
        facts.append(["commit", str(last["git_commit"]) + (" and changes" if last.get("git_dirty") else "")])
    facts += [
        [f"SHA-256 of {run.name(path)}", str(entry["sha256"])] for _, path, entry in run.outputs if "sha256" in entry
    ]
    lines = "\n".join(commands(run.root, run.artifact))
    resolved = last.get("resolved") if isinstance(last.get("resolved"), dict) else {}
    keys: list[list[str | int | float]] = [[key, str(value)] for key, value in sorted(flatten(resolved or {}).items())]
    body = f"<pre>{escape(lines)}</pre>" if lines else ""
    body += html_table(["fact", "value"], facts)
    body += f"<details><summary>Configuration, {len(keys)} keys</summary>{html_table(['key', 'value'], keys)}</details>"
    return Section("Provenance", body)


SECTIONS: tuple[Callable[[Run], Section | None], ...] = (
    pipeline,
    training,
    evaluation,
    treemap_of_bytes,
    quantization,
    audits,
    provenance,
)
"""What the page shows, in this order; each is left out where a run has nothing of it."""


def run_page(path: Path) -> dict[str, Any]:
    """The page about a run, a submission's folder or an artifact: `sections` (their titles) and `html`. InputError if
    there is nothing to show.
    """
    if not path.exists():
        raise InputError("there is no such file or folder", str(path), "name a run's folder or an artifact")
    run = Run(path)
    sections = [section for make in SECTIONS if (section := make(run)) is not None]
    if not sections:
        raise InputError("there is nothing of a run in it", str(path), "name a run's folder or an artifact")
    title = f"{path.resolve().name}: pgolf report"
    return {"sections": [section.title for section in sections], "html": page(title, sections)}
