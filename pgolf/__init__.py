"""pgolf: a toolchain for parameter golf. Importing this is free: here are only its version and when it was loaded."""

import time

__version__ = "0.1.0"
STARTED = time.time()
"""Seconds since 1970. Source code changed after that is not what this process runs."""
