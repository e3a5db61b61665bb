"""Measurements of pgolf beside a bare rival in the same run. See README.md; run as python -m benchmarks.NAME."""
