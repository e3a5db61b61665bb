"""When memory does not suffice."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from pgolf.core.errors import SetupError

ASKED = re.compile(r"tried to allocate (\d[\d.]* \w+)", re.IGNORECASE)
REFUSED = ("can't allocate memory", "not enough memory")
"""What torch's allocator on a CPU says, in an error of no special type."""


def is_shortage(error: BaseException) -> bool:
    """Whether memory has run out, on a GPU or not."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in REFUSED)


@contextmanager
def enough_memory(setting: str) -> Iterator[None]:
    """SetupError when memory runs out within the block; `setting` is what to lower then."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        asked = ASKED.search(str(error))
        what = f"out of memory: {asked[1]} more were asked for" if asked else "out of memory"
        raise SetupError(what, setting, f"lower {setting}") from None


def trim_memory() -> None:
    """Give freed memory back to the system, which a C library may keep for each thread that freed it; nothing happens
    where that is unknown.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
