"""The methods of compress that arrange sections before a codec has them. They stay at home: no script carries them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.catalog import CATALOG, load
from pgolf.core.errors import ConfigError, SetupError
from pgolf.layouts.arranged import (
    ARRANGEMENTS,
    BASE_2,
    BASE_3,
    COLUMNS,
    FLOAT_PLANES,
    Arranged,
    Columns,
)
from pgolf.layouts.bits import NARROWEST, WIDEST
from pgolf.layouts.earlier_rans import EveryRans
from pgolf.layouts.programs import Program

if TYPE_CHECKING:
    from pgolf.core.codecs.base import Codec
    from pgolf.core.quant.qtensor import QuantizedModel

CODERS = ("store", "zlib", "lzma", "brotli", "zstd", "lrzip", "zpaq")
"""Codecs that can stand behind an arrangement."""
ALONE = (*CODERS, "rans")
"""Those that need none."""


@dataclass(frozen=True, kw_only=True)
class Layouts(ABC):
    """A method that decides for every section how it is arranged and by what it is coded."""

    coder: str = "lzma"
    """Codec that has what is arranged: store, zlib, lzma, brotli, zstd, lrzip or zpaq."""

    def __post_init__(self) -> None:
        if self.coder not in CODERS:
            raise ConfigError(f"{self.coder!r} is none of {', '.join(CODERS)}", "coder")

    @abstractmethod
    def choices(self, ident: int, raw: bytes, coded: bool) -> "list[Codec]":
        """Codecs to try on a section, the smallest result of which is taken; `coded` says that it consists of codes."""


@dataclass(frozen=True, kw_only=True)
class Packed(Layouts):
    """Codes in as few bits as they need, 3 to 7, or as base-3 digits or signs, and floats by planes of bytes. Effect:
    behind an entropy coder 13.6 % larger than codes of a byte each (spec: compression 1), so this is for comparison.
    No script carries it. Source: PR #640, PR #1218.
    """

    codec_id = 16 * NARROWEST

    def choices(self, ident: int, raw: bytes, coded: bool) -> "list[Codec]":
        """The one arrangement that suits."""
        codec = load("Codec", self.coder)()
        layout = narrowest(raw) if coded else FLOAT_PLANES.get(ident, 0)
        return [Arranged(layout, codec) if layout else codec]


@dataclass(frozen=True, kw_only=True)
class PerGroup(Layouts):
    """Codes column by column, one stream to a role; rows sorted by similarity, their order stored, where the result is
    smaller; all else by brotli. No script carries it. Effect: -241 kB against brotli (PR #1855). Source: PR #1855.
    """

    coder: str = "lrzip"
    """Codec that has what is arranged: store, zlib, lzma, brotli, zstd, lrzip or zpaq."""
    similar: bool = True
    """Try sorting rows by similarity; the order costs about log2(rows!) bits."""

    codec_id = 16 * COLUMNS

    def choices(self, ident: int, raw: bytes, coded: bool) -> "list[Codec]":
        """Columns as they are, and sorted."""
        if not coded:
            return [load("Codec", "brotli")()]
        codec = load("Codec", self.coder)()
        return [Columns(codec), Columns(codec, similar=True)] if self.similar else [Columns(codec)]


def narrowest(raw: bytes) -> int:
    """The arrangement in the fewest bits that can hold these codes; 0 when they need whole bytes."""
    import numpy as np

    codes = np.frombuffer(raw, np.int8)
    low, high = (int(codes.min()), int(codes.max())) if raw else (0, 0)
    if low >= -1 and high <= 1:
        return BASE_2 if raw and bool(codes.all()) else BASE_3
    fitting = (width for width in range(NARROWEST, WIDEST + 1) if -(1 << width - 1) <= low and high < 1 << width - 1)
    return next(fitting, 0)


def arranged_artifact(model: "QuantizedModel", method: Layouts, info: bytes) -> bytes:
    """The artifact of a quantized model, every section by the choice that makes it smallest."""
    from pgolf.core.artifact import CODES, encode_artifact, pack_container, read_sections
    from pgolf.core.codecs.store import Store
    from pgolf.core.model.config import param_specs
    from pgolf.core.quant.qtensor import QTensor

    sections, shapes = [], dict[int, list[tuple[int, ...]]]()
    for spec in param_specs(model.config):
        if isinstance(model.tensors[spec.name], QTensor):
            shapes.setdefault(CODES[spec.role], []).append(spec.shape)
    for ident, raw in read_sections(encode_artifact(model, Store(), info), {0: Store()}, "artifact").items():
        sizes = shapes.get(ident, [])
        trials = [(codec.codec_id, codec.encode(raw, sizes)) for codec in method.choices(ident, raw, bool(sizes))]
        codec_id, body = min(trials, key=lambda trial: len(trial[1]))
        sections.append((ident, codec_id, len(raw), body))
    return pack_container(sections)


@dataclass(frozen=True)
class Withheld:
    """Stands for a program that nobody has allowed to run."""

    codec_id: int
    name: str

    def encode(self, raw: bytes, shapes: Any = ()) -> bytes:
        """SetupError."""
        return self.decode(raw, 0)

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """SetupError that says how to allow it."""
        raise SetupError(
            f"the artifact needs the program {self.name}, which is not run because a file says so",
            "artifact",
            "if you trust the file: pgolf import FILE --out quantized.safetensors --run-programs",
        )


def all_codecs(programs: bool = False) -> "Mapping[int, Codec]":
    """Every codec of the catalog, alone and behind every arrangement, by its codec byte; programs only if asked for."""
    found: dict[int, Codec] = {}
    for name in ALONE:
        codec = EveryRans() if name == "rans" else load("Codec", name)()
        usable = Withheld(codec.codec_id, name) if isinstance(codec, Program) and not programs else codec
        found[codec.codec_id] = usable
        for layout in ARRANGEMENTS if name in CODERS else ():
            behind = Columns(usable) if layout == COLUMNS else Arranged(layout, usable)
            found[behind.codec_id] = behind
    return found


def method_name(codec_id: int) -> str:
    """What a codec byte stands for, in words."""
    layout, number = divmod(codec_id, 16)
    names = {load("Codec", name).codec_id: name for name in CATALOG["Codec"] if name in ALONE}
    return f"{ARRANGEMENTS[layout]}, {names[number]}" if layout else names[number]
