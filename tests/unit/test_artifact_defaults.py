"""Artifacts leave out what is the default, so that the defaults they rest on may not change."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.catalog import CATALOG, load
from pgolf.config.load import preset_names, resolve
from pgolf.config.run import RunConfig
from pgolf.config.tree import beyond_defaults, flatten, slot_of, to_values
from pgolf.core.errors import InputError
from pgolf.core.files import write_bytes
from pgolf.core.model.config import ModelConfig
from pgolf.stages.model_files import DESCRIBED, artifact_info, load_model

GOLDEN = Path(__file__).parent.parent / "golden" / "artifact_defaults.json"


def slots_below(cls: type) -> set[str]:
    """Slots of a class and of all that can fill them."""
    own = {slot for field in dataclasses.fields(cls) if (slot := slot_of(field.type))}
    inner = {load(slot, name) for slot in own for name in CATALOG[slot]}
    inner |= {type(field.default) for field in dataclasses.fields(cls) if dataclasses.is_dataclass(field.default)}
    return own.union(*map(slots_below, inner - {cls}))


def defaults() -> dict[str, Any]:
    """Every default that an artifact may leave out: those of a run, and of each class by slot and name."""
    values = to_values(RunConfig())
    found = flatten({name: values[name] for name in DESCRIBED})
    methods = {"EvalMethod", "TttMethod"}
    classes = [ModelConfig, *(load(slot, name) for slot in methods for name in CATALOG[slot])]
    for slot in sorted(methods.union(*map(slots_below, classes))):
        for name in CATALOG[slot]:
            found |= flatten(to_values(load(slot, name)()), f"{slot}/{name}")
    return found


def test_defaults_are_what_written_artifacts_rest_on() -> None:
    """None may change or go: an artifact without the key means it. A new key joins the file; its default must be what
    artifacts without it have done so far.
    """
    frozen, found = json.loads(GOLDEN.read_text()), defaults()
    changed = {key: (value, found.get(key)) for key, value in frozen.items() if found.get(key) != value}
    assert not changed, "give a preset the new value instead, or raise the version of pgolf.artifact"
    assert not found.keys() - frozen.keys(), "add these to tests/golden/artifact_defaults.json"


@pytest.mark.parametrize("preset", preset_names())
def test_presets_come_back_from_what_artifacts_say(preset: str) -> None:
    """And what they say is short."""
    config = resolve(preset).config
    info = artifact_info(config, "ab" * 32)
    back = resolve(stored=json.loads(info)["config"]).config
    assert [getattr(back, name) for name in DESCRIBED] == [getattr(config, name) for name in DESCRIBED]
    assert len(info) < 900


CHOICES = [
    f"{path}={name}"
    for path, slot in (
        *(("model.mlp", "Mlp"), ("model.embed", "Embed"), ("model.skips", "Skips"), ("model.residual", "Residual")),
        *(("eval", "EvalMethod"), ("ttt", "TttMethod"), ("model.position", "Position"), ("model.loop", "Loop")),
    )
    for name in CATALOG[slot]
]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(CHOICES), max_size=4, unique_by=lambda text: text.partition("=")[0]))
def test_any_choice_comes_back(choices: list[str]) -> None:
    """Whatever is chosen, only what differs is said, and it is enough."""
    sets = [choice.replace("eval=", "eval.method=").replace("ttt=", "ttt.method=") for choice in choices]
    config = resolve(sets=sets).config
    values = beyond_defaults(config, RunConfig())
    assert resolve(stored=values).config == config
    assert set(values) <= {choice.partition(".")[0].partition("=")[0] for choice in choices}


def test_an_artifact_that_says_anything_else_is_refused(tmp_path: Path) -> None:
    """No table, or sections that artifacts do not have."""
    from pgolf.core.artifact import INFO, pack_container

    path = tmp_path / "model.pgz"
    for text, wrong in (('"config":7', "configuration is not that"), ('"config":{"quant":{}}', "is not that")):
        info = ('{"schema":"pgolf.artifact/1",' + text + "}").encode()
        write_bytes(path, pack_container([(INFO, 0, len(info), info)]))
        with pytest.raises(InputError, match=wrong):
            load_model(path)
