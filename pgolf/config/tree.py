"""Dataclasses as the single source of truth for configuration: layers of plain values in, a typed tree out, and back.

A layer is a nested dict with a name. Later layers win. A slot's class is chosen by its selector key (`kind` or
`method`). When a layer chooses another class, values that earlier layers set for the old one carry over only where
both classes have the field from a common base (eval.seq_len does, the level of zlib is not that of zstd).
"""

import dataclasses
import difflib
import inspect
import math
from dataclasses import dataclass
from typing import Any

from pgolf.catalog import CATALOG, load, name_of, selector
from pgolf.core.errors import ConfigError


class Text(str):
    """A value typed on the command line, to be read by the type of the field it lands in."""


@dataclass(frozen=True)
class Layer:
    """A source of values under the name the user knows it by. Layers with `together` count as given at once."""

    name: str
    values: dict[str, Any]
    together: bool = False


def slot_of(annotation: Any) -> str:
    """The slot a field's type names, or an empty string."""
    name = getattr(annotation, "__name__", "")
    return name if name in CATALOG and not dataclasses.is_dataclass(annotation) else ""


def nearest(key: str, known: list[str], path: str = "", slot: str = "") -> str:
    """A hint: what in the slot has a key of that name, or what may have been meant."""
    kinds = {name: dataclasses.fields(load(slot, name)) for name in CATALOG.get(slot, ())}
    owners = [name for name, fields in kinds.items() if key in {field.name for field in fields}]
    if owners:
        return f"that is a key of {join(path, selector(slot))}={' or '.join(owners)}"
    close = [join(path, name) for name in difflib.get_close_matches(key, known, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(known))}"


def join(path: str, key: str) -> str:
    """A dotted path."""
    return f"{path}.{key}" if path else key


def scalar(value: Any, annotation: Any, path: str, source: str) -> Any:
    """One leaf value checked against, or read by, its field's type. ConfigError if it does not fit."""
    where = f"{path} from {source}"
    wanted = getattr(annotation, "__name__", str(annotation))
    if isinstance(value, Text):
        try:
            if annotation is bool:
                value = {"true": True, "false": False, "on": True, "off": False}[value.lower()]
            elif annotation is int:
                value = int(value)
            elif annotation is float:
                value = float(value)
            else:
                value = str(value)
        except (ValueError, KeyError):
            raise ConfigError(f"{str(value)!r} is not a value of type {wanted}", where) from None
    elif annotation is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if type(value) is not annotation:
        raise ConfigError(f"{value!r} is not a value of type {wanted}", where)
    if annotation is float and not math.isfinite(value):
        raise ConfigError(f"{value!r} is not a finite number", where)
    return value


def carries(key: str, old: type, new: type) -> bool:
    """Whether a value set for one class means the same for another: both have the field from a common class."""
    if old is new or key not in {field.name for field in dataclasses.fields(old)}:
        return True
    return any(key in inspect.get_annotations(base) and base in new.__mro__ for base in old.__mro__)


class Builder:
    """Builds one tree and remembers where each leaf came from (`origins`: dotted key -> layer name)."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self.origins: dict[str, str] = {}

    def build(self, default: Any, values: list[dict[str, Any]], path: str, slot: str = "") -> Any:
        """`default` is an instance whose fields are the lowest layer; `values` has one dict per layer, maybe empty."""
        classes = self.choose(type(default), values, path, slot) if slot else [type(default)] * len(values)
        cls = classes[-1] if classes else type(default)
        default = default if cls is type(default) else cls()
        fields = {field.name: field for field in dataclasses.fields(cls)}
        usable = []
        for index, layer in enumerate(values):
            own = {field.name for field in dataclasses.fields(classes[index])}
            for key in layer:
                if key not in fields and key not in own and not (slot and key == selector(slot)):
                    raise ConfigError(
                        f"unknown key {join(path, key)} in {self.layers[index].name}",
                        "configuration",
                        nearest(key, list(fields), path, slot),
                    )
            usable.append(
                {key: value for key, value in layer.items() if key in fields and carries(key, classes[index], cls)}
            )
        taken = {name: self.field(field, getattr(default, name), usable, path) for name, field in fields.items()}
        try:
            return cls(**taken)
        except ConfigError as error:
            raise ConfigError(error.what, join(path, error.where) if error.where else path, error.fix) from None

    def choose(self, cls: type, values: list[dict[str, Any]], path: str, slot: str) -> list[type]:
        """The slot's class as of each layer; those given together all see the last choice among them."""
        key, classes = selector(slot), []
        self.origins[join(path, key)] = "default"
        for index, layer in enumerate(values):
            if key in layer:
                name = str(layer[key])
                if name not in CATALOG[slot]:
                    hint = nearest(name, list(CATALOG[slot]))
                    raise ConfigError(f"unknown {key} {name!r}", join(path, key), hint)
                cls, self.origins[join(path, key)] = load(slot, name), self.layers[index].name
            classes.append(cls)
        last = {layer.together: chosen for layer, chosen in zip(self.layers, classes)}
        return [last[True] if layer.together else chosen for layer, chosen in zip(self.layers, classes)]

    def field(self, field: dataclasses.Field[Any], default: Any, values: list[dict[str, Any]], path: str) -> Any:
        """The value of one field."""
        full, slot = join(path, field.name), slot_of(field.type)
        if slot or dataclasses.is_dataclass(default):
            nested = []
            for index, layer in enumerate(values):
                value = layer.get(field.name, {})
                if isinstance(value, str) and slot:
                    value = {selector(slot): value}
                if not isinstance(value, dict):
                    raise ConfigError(f"{full} is a section, not a value", self.layers[index].name, f"set {full}.KEY")
                nested.append(value)
            return self.build(default, nested, full, slot)
        self.origins[full] = "default"
        for index, layer in enumerate(values):
            if field.name in layer:
                default = scalar(layer[field.name], field.type, full, self.layers[index].name)
                self.origins[full] = self.layers[index].name
        return default


def build_config(default: Any, layers: list[Layer]) -> tuple[Any, dict[str, str]]:
    """The typed tree over `default`, and the origin of every leaf."""
    builder = Builder(layers)
    return builder.build(default, [layer.values for layer in layers], ""), builder.origins


def to_values(config: Any, slot: str = "") -> dict[str, Any]:
    """A config as nested plain values, selectors included; `build_config` gives back an equal config."""
    values: dict[str, Any] = {selector(slot): name_of(slot, type(config))} if slot else {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = slot_of(field.type)
        values[field.name] = to_values(value, inner) if inner or dataclasses.is_dataclass(value) else value
    return values


def beyond_defaults(config: Any, default: Any, slot: str = "") -> dict[str, Any]:
    """As `to_values` without what `default` has as well; `build_config` over it gives back an equal config."""
    values: dict[str, Any] = {}
    if type(config) is not type(default):
        values[selector(slot)], default = name_of(slot, type(config)), type(config)()
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        inner = slot_of(field.type)
        if inner or dataclasses.is_dataclass(value):
            value, usual = beyond_defaults(value, usual, inner), {}
        if value != usual:
            values[field.name] = value
    return values


def flatten(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested values as dotted key -> leaf."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, join(path, key)) if isinstance(value, dict) else {join(path, key): value})
    return flat


def parse_set(assignment: str) -> dict[str, Any]:
    """`a.b.c=value` as a nested dict with a Text leaf. ConfigError if it is not of that form. Spaces around a value do
    not belong to it, but a value may be a space, or a line break.
    """
    key, equals, value = assignment.partition("=")
    if not equals or not all(part.isidentifier() for part in key.strip().split(".")):
        raise ConfigError(f"{assignment!r} is not of the form dotted.key=value", "--set")
    *parents, last = key.strip().split(".")
    nested: dict[str, Any] = {last: Text(value.strip() or value)}
    for part in reversed(parents):
        nested = {part: nested}
    return nested
