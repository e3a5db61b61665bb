"""Codes in as few bits as they need, and bytes by planes: arrangements of known length (spec: compression 2 and 5).

An entropy coder does better on codes of a byte each, so these are for artifacts without one, and for comparison.
"""

from typing import TYPE_CHECKING

from pgolf.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np

NARROWEST, WIDEST = 3, 7
"""Bits per code that can be packed."""
TRITS, SIGNS = 5, 8
"""Codes a byte of base-3 digits, and of signs, holds."""


def pack_bits(codes: "np.ndarray", width: int) -> bytes:
    """int8 codes (N,) in [-2^(width-1), 2^(width-1)) as a little-endian stream of `width` bits each, biased to be
    positive: 8 codes to `width` bytes.
    """
    import numpy as np

    biased = (codes.astype(np.int16) + (1 << width - 1)).astype(np.uint8)
    bits = np.unpackbits(biased[:, None], axis=1, count=width, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_bits(packed: bytes, width: int, count: int) -> "np.ndarray":
    """The codes (count,) again. InputError when bits beyond the last code are set."""
    import numpy as np

    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    no_rest(bits[count * width :])
    biased = np.packbits(bits[: count * width].reshape(count, width), axis=1, bitorder="little")
    return (biased.reshape(count).astype(np.int16) - (1 << width - 1)).astype(np.int8)


def pack_trits(codes: "np.ndarray") -> bytes:
    """int8 codes (N,) of -1, 0, 1 as base-3 digits, five a byte, the first the least."""
    import numpy as np

    digits = np.zeros(-(-len(codes) // TRITS) * TRITS, np.uint8)
    digits[: len(codes)] = codes + 1
    packed: bytes = (digits.reshape(-1, TRITS) * 3 ** np.arange(TRITS)).sum(1).astype(np.uint8).tobytes()
    return packed


def unpack_trits(packed: bytes, count: int) -> "np.ndarray":
    """The codes (count,) again. InputError for a byte of 243 or more, or digits beyond the last code."""
    import numpy as np

    values = np.frombuffer(packed, np.uint8)
    if bool((values >= 3**TRITS).any()):
        raise InputError("a section of base-3 digits holds a byte of 243 or more", "artifact")
    digits = (values[:, None] // 3 ** np.arange(TRITS) % 3).ravel()
    no_rest(digits[count:])
    return (digits[:count] - 1).astype(np.int8)


def pack_signs(codes: "np.ndarray") -> bytes:
    """int8 codes (N,) of -1 and 1, eight a byte, the first in the lowest bit."""
    import numpy as np

    return np.packbits(codes > 0, bitorder="little").tobytes()


def unpack_signs(packed: bytes, count: int) -> "np.ndarray":
    """The codes (count,) again. InputError when bits beyond the last code are set."""
    import numpy as np

    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    no_rest(bits[count:])
    return (2 * bits[:count].astype(np.int8) - 1).astype(np.int8)


def no_rest(left: "np.ndarray") -> None:
    """InputError unless what is left over is zero."""
    if bool(left.any()):
        raise InputError("a packed section holds more than its codes", "artifact")


def shuffle(raw: bytes, stride: int) -> bytes:
    """Bytes 0, stride, 2 stride, ... first, then 1, stride + 1, ...; the length need not be a multiple."""
    return b"".join(raw[place::stride] for place in range(stride))


def unshuffle(planes: bytes, stride: int) -> bytes:
    """The bytes in their order again."""
    raw, at = bytearray(len(planes)), 0
    for place in range(stride):
        size = len(range(place, len(planes), stride))
        raw[place::stride] = planes[at : at + size]
        at += size
    return bytes(raw)
