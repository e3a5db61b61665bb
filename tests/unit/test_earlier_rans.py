"""Sections as the first and the second version of rans wrote them: still read, and safely."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from pgolf.core.codecs.adaptive import Rans
from pgolf.core.errors import InputError
from pgolf.layouts.earlier_rans import MATRICES_THEN, EveryRans
from pgolf.layouts.methods import all_codecs
from pgolf.layouts.second_rans import SECOND_MATRICES

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(version: str) -> dict[str, bytes]:
    """Sections of a version, written by it, and what they hold."""
    with np.load(GOLDEN / f"{version}_rans.npz") as found:
        return {name: found[name].tobytes() for name in found}


def test_matrices_of_then_are_read_at_home_and_refused_by_the_script() -> None:
    """By order 0, by prediction with 0, 1 and more numbers, and one that is empty; by each model of the second."""
    for version, first in (("earlier", MATRICES_THEN), ("second", SECOND_MATRICES)):
        parts = golden(version)
        assert parts["coded"][0] == first
        assert all_codecs()[Rans.codec_id].decode(parts["coded"], len(parts["raw"])) == parts["raw"]
        with pytest.raises(InputError):
            Rans().decode(parts["coded"], len(parts["raw"]))


def test_planes_of_then_are_read_at_home_and_refused_by_the_script() -> None:
    scales = golden("earlier")
    assert EveryRans().decode(scales["coded_scales"], len(scales["scales"])) == scales["scales"]
    parts = golden("second")
    for kind in (1, 2, 3, 4):
        coded, plain = parts[f"coded_{kind}"], parts[f"plain_{kind}"]
        assert coded[0] == kind and EveryRans().decode(coded, len(plain)) == plain
        with pytest.raises(InputError):
            Rans().decode(coded, len(plain))
        with pytest.raises(InputError):
            EveryRans().decode(coded, len(plain) + 1)


def test_sections_of_today_are_read_too(rng: np.random.Generator) -> None:
    matrix = np.rint(rng.normal(0, 3, (40, 20))).astype(np.int8)
    coded = Rans().encode(matrix.tobytes(), [matrix.shape])
    assert EveryRans().decode(coded, matrix.size) == matrix.tobytes()


@pytest.mark.parametrize("version", ["earlier", "second"])
def test_damage_is_refused_or_gives_codes(rng: np.random.Generator, version: str) -> None:
    """The container's checksums find what gives other codes; here it must only not crash."""
    parts = golden(version)
    raw, good = parts["raw"], parts["coded"]
    for number in range(60):
        bad = bytearray(good)
        place = number if number < 30 else int(rng.integers(8 * len(good)))
        bad[place // 8] ^= 1 << place % 8
        with contextlib.suppress(InputError):
            assert len(EveryRans().decode(bytes(bad), len(raw))) == len(raw)
    for cut in range(0, len(good), 700):
        with pytest.raises(InputError):
            EveryRans().decode(good[:cut], len(raw))
