"""The fixtures of tests/cli, for the tests of this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "cli"))

from harness import copy_run, corpus, pgolf, spawn, tiny_run

__all__ = ["copy_run", "corpus", "pgolf", "spawn", "tiny_run"]
