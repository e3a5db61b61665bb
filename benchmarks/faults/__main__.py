"""Every fault of docs/reliability.md, provoked: campaigns of many rounds, and the tests marked with the row.

A full run takes hours; --row chooses rows, --rounds reduced does what the tests do. --write puts the rows that were run
into the table of the page. --run and --text take a finished run of preset tiny and its text, which are made otherwise.
Exit code 1 when anything went wrong.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.rows import CAMPAIGNS, ROWS
from benchmarks.faults.stages import Bench, good, limit_threads
from benchmarks.faults.victims import run
from benchmarks.report import parser, show

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = 79
HEAD = "| row | how provoked | rounds | outcome |\n| --- | --- | --- | --- |\n"
TESTS = "tests"


def write_text(path: Path) -> Path:
    """English documents that ship with Python, one JSON object a line."""
    from pydoc_data.topics import topics

    path.write_text("".join(json.dumps({"text": topics[name]}) + "\n" for name in sorted(topics)[:DOCUMENTS]))
    return path


def tested(rows: list[str], report: Path) -> dict[str, Outcome]:
    """The tests that are marked with rows, in one run of pytest: row -> how many passed, and which failed."""
    marked = " or ".join(f'fault(row="{row}")' for row in rows)
    line = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", f"({marked}) and not gpu"]
    subprocess.run([*line, f"--junitxml={report}", "tests"], cwd=ROOT, capture_output=True, check=False)
    found = {row: Outcome() for row in rows}
    skipped: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        marks = (item for item in case.iter("property") if item.get("name") == "fault")
        for row in {str(item.get("value")) for item in marks} & set(rows):
            if case.find("failure") is not None or case.find("error") is not None:
                found[row].bad.append(str(case.get("name")))
            elif case.find("skipped") is not None:
                skipped[row] += 1
            found[row].rounds += 1
    return {row: outcome.saying(f"{skipped[row]} skipped" if skipped[row] else "") for row, outcome in found.items()}


def table_line(row: str, how: str, outcome: Outcome) -> str:
    """A line of the page's table."""
    return f"| {row} | {ROWS[row]}: {how} | {outcome.rounds:,} | {outcome.text()} |"


def merged(text: str, lines: list[str]) -> str:
    """A page with these lines in its table, in place of those of the same row and fault."""
    start = text.index(HEAD) + len(HEAD)
    stop = text.find("\n\n", start - 1) + 1 or len(text)
    kept = {line.rsplit(" | ", 2)[0]: line for line in text[start:stop].splitlines()}
    kept |= {line.rsplit(" | ", 2)[0]: line for line in lines}
    order = list(ROWS)
    rows = sorted(kept.values(), key=lambda line: (order.index(line.split(" | ")[0].strip("| ")), TESTS + " |" in line))
    return text[:start] + "".join(f"{line}\n" for line in rows) + text[stop:]


def main() -> int:
    """Provoke, count, show."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", choices=("full", "reduced"), default="full")
    arguments.add_argument("--row", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    arguments.add_argument("--no-tests", action="store_true", help="campaigns only")
    arguments.add_argument("--run", type=Path)
    arguments.add_argument("--text", type=Path)
    arguments.add_argument("--write", type=Path, metavar="PAGE")
    options = arguments.parse_args()
    limit_threads()
    rows: list[dict[str, Any]] = []
    lines, wrong = list[str](), list[str]()

    def tell(row: str, how: str, outcome: Outcome, began: float) -> None:
        seconds = round(time.monotonic() - began)
        rows.append({"row": row, "how": how, "rounds": outcome.rounds, "outcome": outcome.text(), "seconds": seconds})
        lines.append(table_line(row, how, outcome))
        wrong.extend(f"{row}: {bad}" for bad in outcome.bad)
        print(f"{row} {how}: {outcome.rounds:,} rounds, {outcome.text()}, {seconds} s", file=sys.stderr, flush=True)
        print("".join(f"{bad}\n" for bad in outcome.bad), end="", file=sys.stderr, flush=True)
        if options.write:
            options.write.write_text(merged(options.write.read_text(), lines))

    with tempfile.TemporaryDirectory(prefix="pgolf-faults-") as name:
        room = Path(name)
        text = options.text or write_text(room / "topics.jsonl")
        finished = options.run or room / "run"
        if not options.run:
            good(run(["run", "--preset", "tiny", "--quiet", "--text", str(text), "--out", str(finished)]))
        bench = Bench(room / "bench", text, finished)
        for campaign in CAMPAIGNS:
            if campaign.row in options.row:
                began = time.monotonic()
                rounds = campaign.full if options.rounds == "full" else campaign.reduced
                tell(campaign.row, campaign.how, campaign.run(bench, rounds), began)
        bench.close()
        if not options.no_tests:
            began = time.monotonic()
            for row, outcome in tested(options.row, room / "tests.xml").items():
                tell(row, TESTS, outcome, began)
    options.run, options.text, options.write = map(str, (options.run, options.text, options.write))
    show("faults", options, rows, wrong)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
