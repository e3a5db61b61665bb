"""Wall time of the commands that must answer at once, beside a bare interpreter and beside `import torch`.

Every round runs every command once, so that a busy moment of the machine hits all of them alike.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.report import parser, seconds_of, show, spread

ROOT = Path(__file__).resolve().parent.parent
BARE, TORCH = "python -c pass", "python -c 'import torch'"
COMMANDS = {
    BARE: ["-c", "pass"],
    TORCH: ["-c", "import torch"],
    "pgolf --help": ["-m", "pgolf", "--help"],
    "pgolf size baseline_sp1024": ["-m", "pgolf", "size", "baseline_sp1024"],
    "pgolf config show": ["-m", "pgolf", "config", "show"],
}


def run(arguments: list[str]) -> None:
    """One interpreter, its output thrown away; CalledProcessError if it fails."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def main() -> None:
    """Time every command `--rounds` times."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=9)
    options = arguments.parse_args()
    for command in COMMANDS.values():  # fills the disk cache and writes the .pyc files
        run(command)
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds):
        for name, command in COMMANDS.items():
            seconds[name].append(seconds_of(partial(run, command)))
    least = {name: min(values) for name, values in seconds.items()}
    rows = [
        {
            "command": name,
            **spread(values),
            "over_bare_python": round(least[name] / least[BARE], 3),
            "over_import_torch": round(least[name] / least[TORCH], 4),
        }
        for name, values in seconds.items()
    ]
    show("startup", options, rows, ["ratios are those of the least times"])


if __name__ == "__main__":
    main()
