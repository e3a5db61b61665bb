"""Sections by pgolf's own coder: codes as the matrices they are, side tensors by planes of bytes, the rest by zlib."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from pgolf.core.codecs.zlib import Zlib
from pgolf.core.errors import InputError

STRIDES, PLANES, STEPS_OF_2, MATRICES = (1, 2, 4), 4, 7, 253
"""Every how many-th byte makes a plane; a section begins with one of these, and 4 more, with 7 (planes of the
differences of u16), 0 (zlib) or 253 (matrices). Earlier versions used 1 to 4, 254 and 255.
"""


@dataclass(frozen=True, kw_only=True)
class Rans:
    """Adaptive interleaved rANS with prediction from rows and columns where it pays. Needs nothing but
    numpy. Effect: 0.986 of brotli's bytes on GPTQ codes of matrices, 0.942 on those of an embedding
    (`python -m benchmarks.codecs`). Source: arXiv:1311.2540; the models are ours.
    """

    permute: bool = False
    """Sort hidden units of MLPs and channels of values by their steps, layer by layer where that takes fewer bytes; the
    function stays the same to rounding. Not along trellises, not in ternary models.
    """

    codec_id = 9

    def encode(self, raw: bytes, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
        """Compress: int8 matrices of `shapes`, or with none given, anything."""
        import numpy as np

        from pgolf.core.codecs.rans import encode_matrices

        if shapes:
            values, start, matrices = np.frombuffer(raw, np.int8), 0, []
            for rows, columns in shapes:
                matrices.append(values[start : start + rows * columns].reshape(rows, columns))
                start += rows * columns
            coded, words = encode_matrices(matrices)
            ahead = zlib.compress(b"".join(struct.pack("<II", *shape) for shape in shapes) + words, 9)
            return struct.pack("<BHII", MATRICES, len(shapes), len(ahead), len(words)) + ahead + coded
        values, trials = np.frombuffer(raw, np.uint8), [b"\0" + zlib.compress(raw, 9)]
        plans = [(PLANES + stride, stride, values) for stride in STRIDES if raw]
        if raw and len(raw) % 2 == 0:
            steps = np.diff(values.view("<i2"), prepend=np.int16(0))
            plans.append((STEPS_OF_2, 2, (steps << 1 ^ steps >> 15).view(np.uint8)))
        for kind, stride, plain in plans:
            trials.append(bytes([kind]) + encode_matrices([plain[None, i::stride] for i in range(stride)])[0])
        return min(trials, key=len)

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes, bounded in memory. InputError otherwise."""
        import numpy as np

        from pgolf.core.codecs.rans import decode_matrices

        kind = coded[0] if coded else 1
        if kind == 0:
            return Zlib().decode(coded[1:], raw_len)
        if kind == MATRICES:
            count, size, words = struct.unpack("<HII", coded[1:11].ljust(10))
            ahead = Zlib().decode(coded[11 : 11 + size], 8 * count + min(words, raw_len))
            shapes = list(struct.iter_unpack("<II", ahead[: 8 * count]))
            if sum(rows * columns for rows, columns in shapes) != raw_len:
                raise InputError("a coded section is damaged", "artifact")
            found = decode_matrices(coded[11 + size :], shapes, ahead[8 * count :])
            return b"".join(matrix.astype(np.int8).tobytes() for matrix in found)
        stride = 2 if kind == STEPS_OF_2 else kind - PLANES
        if stride not in STRIDES or (kind == STEPS_OF_2 and raw_len % 2):
            raise InputError("a coded section is damaged", "artifact")
        planes = decode_matrices(coded[1:], [(1, len(range(i, raw_len, stride))) for i in range(stride)])
        values = np.empty(raw_len, np.uint8)
        for i, plane in enumerate(planes):
            values[i::stride] = plane[0]
        if kind == STEPS_OF_2:
            folded = values.view("<u2")
            values = np.cumsum(folded >> 1 ^ -(folded & 1), dtype="<u2").view(np.uint8)
        return values.tobytes()
