"""pgolf: a toolchain for parameter golf. Importing this is free: here are only its version and when it was loaded."""

from datetime import UTC, datetime

__version__ = "0.1.0"
STARTED = datetime.now(UTC).timestamp()
"""Date in seconds since 1970. Source files of a later date are not what this process runs."""
