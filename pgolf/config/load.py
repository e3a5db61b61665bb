"""Presets and files to a resolved configuration: defaults < stored config < presets < --set."""

import copy
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.config.run import RunConfig
from pgolf.config.tree import Layer, build_config, flatten, nearest, parse_set, to_values
from pgolf.core.errors import ConfigError
from pgolf.core.files import read_bytes

PRESETS = Path(__file__).parent.parent / "presets"


RENAMED = {"tokenize.threads": "tokenize.workers", "ttt.momentum": "ttt.optimizer.momentum"}
"""Keys that stored configurations may still have under an older name."""

RENAMED_CHOICES = {"ttt.method": {"chunk_sgd": "chunk"}}
"""Choices that stored configurations may still have under an older name."""

MOVED_CHOICES = {("model", "aux_loss", "multi_token"): ("multi_token", "mtp_heads")}
"""Section, slot and kind that stored configurations may still have for what is a kind of another slot now."""


@dataclass(frozen=True)
class Resolved:
    """A configuration, where each key's value came from, and the preset's name (several with commas between them; empty
    without one).
    """

    config: RunConfig
    origins: dict[str, str]
    preset: str

    @property
    def values(self) -> dict[str, Any]:
        """The whole configuration as nested plain values."""
        return to_values(self.config)


def preset_names() -> list[str]:
    """Names of the presets that come with pgolf."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def is_path(name: str) -> bool:
    """Whether a preset is named by a path rather than by one of pgolf's names."""
    return name.endswith(".toml") or "/" in name


def preset_path(name: str) -> Path:
    """The file of a preset: one of pgolf's by name, or the user's own by path. ConfigError if there is none."""
    if is_path(name):
        return Path(name)
    if name not in preset_names():
        raise ConfigError(f"there is no preset {name!r}", "--preset", nearest(name, preset_names()))
    return PRESETS / f"{name}.toml"


def read_preset(name: str, seen: tuple[str, ...] = ()) -> list[Layer]:
    """Layers of a preset, the ones it extends first. ConfigError for bad TOML or a circle."""
    if name in seen:
        raise ConfigError(f"presets extend each other in a circle: {' -> '.join((*seen, name))}", "extends")
    path = preset_path(name)
    try:
        values = tomllib.loads(read_bytes(path, 1 << 20).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"not valid TOML: {error}", str(path)) from None
    parents = str(values.pop("extends", ""))
    values.pop("description", None)
    return [*(read_presets(parents, (*seen, name), path.parent) if parents else []), Layer(f"preset {name}", values)]


def read_presets(names: str, seen: tuple[str, ...] = (), folder: Path = Path()) -> list[Layer]:
    """Layers of presets with commas between their names, the later ones over the earlier; paths start at `folder`."""
    whole = is_path(names) and (folder / names).exists()
    each = [name.strip() for name in ([names] if whole else names.split(","))]
    return [layer for name in each for layer in read_preset(below(folder, name) if is_path(name) else name, seen)]


def below(folder: Path, path: str) -> str:
    """A path that starts at a folder, in a form that is known for a path."""
    whole = str(folder / path)
    return whole if is_path(whole) else f"./{whole}"


def preset_description(name: str) -> str:
    """The one-line description a preset gives of itself."""
    return str(tomllib.loads(preset_path(name).read_text(encoding="utf-8")).get("description", ""))


def upgraded(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the names keys and choices have now."""
    stored = copy.deepcopy(stored)
    for old, new in RENAMED.items():
        section, key = old.split(".")
        values = stored.get(section)
        if isinstance(values, dict) and key in values:
            *path, last = new.split(".")[1:]
            value = values.pop(key)
            for name in path:
                values = values.setdefault(name, {})
                if not isinstance(values, dict):
                    raise ConfigError(f"{new.rpartition('.')[0]} is a section, not a value", section)
            values[last] = value
    for key, choices in RENAMED_CHOICES.items():
        section, selecting = key.split(".")
        values = stored.get(section)
        if isinstance(values, dict) and isinstance(values.get(selecting), str):
            values[selecting] = choices.get(values[selecting], values[selecting])
    for (section, slot, kind), (new, now) in MOVED_CHOICES.items():
        values = stored.get(section)
        part = values.get(slot) if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(part, dict) and part.get("kind") == kind:
            values[slot], values[new] = {"kind": "none"}, {**part, "kind": now}
    return stored


def forget_sizes(layers: list[Layer]) -> None:
    """Drop the known sizes of every layer after which another one changes quantizer, codec or the length of rows."""
    for index, layer in enumerate(layers):
        later = [flatten(other.values) for other in layers[index + 1 :]]
        if any(key.startswith(("quant.", "compress.")) or key == "model.model_dim" for keys in later for key in keys):
            layer.values.pop("size", None)


def open_lengths(config: RunConfig, origins: dict[str, str]) -> Layer | None:
    """What eval.rope and ttt.rope leave open, if they do: `trained` is the length of the model's rows in training,
    `longest` that of the windows. ConfigError where rows were as long, so that there is nothing to stretch for.
    """
    layer = Layer("train.seq_len, windows", {})
    for stage in ("eval", "ttt"):
        known = {"trained": config.train.seq_len, "longest": getattr(config, stage).seq_len}
        left = {key: value for key, value in known.items() if origins.get(f"{stage}.rope.{key}") == "default"}
        if left.get("trained", 0) >= known["longest"]:
            raise ConfigError(
                f"the model was trained on rows of {known['trained']} tokens, and windows have {known['longest']}: "
                "there is nothing to stretch for",
                f"{stage}.rope",
                f"set {stage}.seq_len above {known['trained']}, or {stage}.rope=as_trained",
            )
        if left:
            layer.values[stage] = {"rope": left}
    return layer if layer.values else None


def resolve(
    preset: str = "",
    sets: list[str] | None = None,
    stored: dict[str, Any] | None = None,
    stored_name: str = "input file",
) -> Resolved:
    """Merge a configuration stored in an input file, presets and --set; what these leave open for other values to say
    is filled in. ConfigError names key and source; what cannot be trained is refused too, unless it comes with a file:
    then it has been.
    """
    layers = [Layer(stored_name, upgraded(stored))] if stored else []
    layers += read_presets(preset) if preset else []
    layers += [Layer(f"--set {text}", parse_set(text), together=True) for text in sets or []]
    forget_sizes(layers)
    config, origins = build_config(RunConfig(), layers)
    if left := open_lengths(config, origins):
        config, origins = build_config(RunConfig(), [*layers, left])
    if not stored:
        config.check_training()
        config.check_layers()
    return Resolved(config, origins, preset)
