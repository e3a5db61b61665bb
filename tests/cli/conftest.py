"""Fixtures of the end-to-end tests; they live in harness.py, which tests/bundle and tests/faults use as well."""

from harness import copy_run, corpus, pgolf, spawn, tiny_run

__all__ = ["copy_run", "corpus", "pgolf", "spawn", "tiny_run"]
