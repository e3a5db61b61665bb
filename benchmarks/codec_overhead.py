"""Bits per weight of every byte codec on Gaussian codes, beside the order-0 entropy of those codes.

Standard normal weights are rounded to multiples of a step, clipped to ±127 and stored one code a byte, as in an
artifact. The full table at the default size is CODED_BITS of pgolf/sizing.py, from which `pgolf size PRESET` predicts.
"""

import time

import numpy as np

from benchmarks.report import parser, show
from pgolf.catalog import load
from pgolf.sizing import CODED_BITS

STEPS = (0.8, 0.6452, 0.4145, 0.2222, 0.1575, 0.06, 0.0252)
"""Steps over the standard deviation, from the coarsest 4-bit grids (0.8 = 5.6 / 7) to 8 bits clipped at 3.2 sigma."""


def gaussian_codes(rows: int, columns: int, step: float, seed: int) -> np.ndarray:
    """int8 codes of a matrix of standard normals, (rows, columns)."""
    weights = np.random.default_rng(seed).standard_normal((rows, columns))
    return np.clip(np.rint(weights / step), -127, 127).astype(np.int8)


def order0_entropy(codes: np.ndarray) -> float:
    """Bits per code that a perfect coder with one table would spend."""
    counts = np.unique(codes, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def main() -> None:
    """Encode, count, compare with the table in use."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=2048)
    arguments.add_argument("--columns", type=int, default=1024)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--steps", type=float, nargs="+", default=list(STEPS))
    arguments.add_argument("--codecs", nargs="+", default=sorted(CODED_BITS), choices=sorted(CODED_BITS))
    options = arguments.parse_args()
    result = []
    for step in options.steps:
        codes = gaussian_codes(options.rows, options.columns, step, options.seed)
        entropy, raw = order0_entropy(codes), codes.tobytes()
        for name in options.codecs:
            start = time.perf_counter()
            coded = load("Codec", name)().encode(raw, [codes.shape])
            seconds = time.perf_counter() - start
            bits = 8 * len(coded) / codes.size
            known = dict(zip(STEPS, CODED_BITS[name])).get(step)
            result.append(
                {
                    "step": step,
                    "codec": name,
                    "entropy_bits": round(entropy, 4),
                    "bits_per_weight": round(bits, 4),
                    "over_entropy": round(bits / entropy, 4),
                    "in_sizing_py": list(known) if known else None,
                    "matches": known == (round(entropy, 3), round(bits, 3)),
                    "encode_s": round(seconds, 3),
                }
            )
    strangers = [row for row in result if row["in_sizing_py"] and not row["matches"]]
    remark = f"{len(strangers)} of {len(result)} cells differ from pgolf/sizing.py in the third decimal or more"
    show("codec_overhead", options, result, [remark])


if __name__ == "__main__":
    main()
