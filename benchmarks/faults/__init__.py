"""Faults on purpose: what may go wrong on a machine, in a file or on the way, provoked again and again, and what pgolf
does then. `python -m benchmarks.faults` runs all of it in full, tests/faults the same code in a few rounds.
"""
