"""Every preset resolves to a complete configuration that says the same when read back from where it was stored."""

import json
import tomllib

import pytest

from pgolf.config.load import PRESETS, preset_description, preset_names, preset_path, read_preset, resolve
from pgolf.config.run import RunConfig
from pgolf.config.tree import Layer, build_config, flatten
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.model.config import param_specs
from pgolf.core.recipe import Recipe

NAMES = preset_names()


def size(config):
    """Parameters of a configuration's model."""
    return sum(spec.numel for spec in param_specs(config.model))


def test_the_presets_are_those_in_the_folder():
    assert {"baseline_sp1024", "demo", "tiny"} <= set(NAMES)
    assert sorted(path.stem for path in PRESETS.glob("*.toml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_resolves_and_describes_itself(name):
    resolved = resolve(name)
    assert resolved.preset == name
    assert 20 < len(preset_description(name)) < 200
    own = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    mine = [key for key, origin in resolved.origins.items() if origin == f"preset {name}"]
    assert len(mine) >= len(flatten({key: value for key, value in own.items() if isinstance(value, dict)}))
    for key in mine:
        assert key in flatten(resolved.values)


def test_presets_lie_over_one_another_as_they_are_named(tmp_path):
    model, quantizer = resolve("leader_tiny"), resolve("quant_coupled")
    both = resolve("leader_tiny, quant_coupled", ["quant.states=8"])
    assert both.preset == "leader_tiny, quant_coupled"
    assert both.config.model == model.config.model and both.config.compress == quantizer.config.compress
    assert (both.config.quant.couple, both.config.quant.states) == ("rows", 8)
    assert both.config.quant.embed.bits == model.config.quant.embed.bits != quantizer.config.quant.embed.bits
    assert (
        both.origins["quant.couple"] == "preset quant_coupled"
        and both.origins["quant.states"] == "--set quant.states=8"
    )
    assert type(resolve("quant_coupled,leader_tiny").config.quant) is type(model.config.quant)
    own = tmp_path / "mine, all mine.toml"
    own.write_text('extends = "tiny"\n[train]\nseed = 5\n')
    assert resolve(str(own)).config.train.seed == 5, "a comma in a file's name"
    other = own.rename(tmp_path / "mine.toml")
    assert resolve(f"{other},quant_coupled").config.quant.couple == "rows"
    for wrong in ("tiny,", "tiny,,demo", "tiny,dmo", f"tiny,{own}"):
        with pytest.raises((ConfigError, InputError)):
            resolve(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_stored_values_are_complete(name):
    resolved = resolve(name)
    stored = json.loads(json.dumps(resolved.values))
    config, origins = build_config(RunConfig(), [Layer("stored", stored)])
    assert config == resolved.config
    assert set(origins.values()) == {"stored"}
    assert set(flatten(stored)) == set(resolved.origins)
    assert resolve(stored=stored).config == resolve(name).config


def test_the_baseline_has_17_059_912_parameters():
    assert size(resolve("baseline_sp1024").config) == 17_059_912


def test_the_baseline_is_the_recipe_of_the_defaults():
    baseline, default = resolve("baseline_sp1024").config.recipe, Recipe()
    assert (baseline.model, baseline.optim) == (default.model, default.optim)
    for key in ("iterations", "max_wallclock_seconds", "seq_len", "batch_tokens", "warmup_steps", "seed"):
        assert getattr(baseline.train, key) == getattr(default.train, key)
    assert (baseline.train.batch_tokens, baseline.train.seq_len, baseline.train.iterations) == (524_288, 1024, 20_000)
    assert baseline.quant == default.quant
    assert (type(baseline.eval).__name__, baseline.eval.seq_len, baseline.compress.level) == ("PlainEval", 1024, 9)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_baseline_batch_divides_over_the_ranks(world_size):
    assert resolve("baseline_sp1024").config.train.micro_steps(world_size) == 8 // world_size


def test_three_ranks_do_not_divide_the_baseline_batch():
    with pytest.raises(ConfigError, match="3 ranks"):
        resolve("baseline_sp1024").config.train.micro_steps(3)


def test_tiny_extends_demo():
    tiny, demo = resolve("tiny"), resolve("demo")
    assert [layer.name for layer in read_preset("tiny")] == ["preset demo", "preset tiny"]
    assert size(tiny.config) < 150_000 < size(demo.config) < 2_000_000
    assert tiny.config.quant.bits == demo.config.quant.bits == 6
    assert tiny.origins["quant.bits"] == "preset demo"
    assert tiny.origins["model.num_layers"] == "preset tiny"


def test_an_unknown_preset_gets_a_hint():
    with pytest.raises(ConfigError, match=r"no preset 'tinny'.*did you mean tiny"):
        resolve("tinny")


def written(folder, name, text):
    """A preset file, as an argument of --preset."""
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_preset_of_ones_own_extends_ours(tmp_path):
    path = written(tmp_path, "mine.toml", 'extends = "tiny"\ndescription = "x"\n[train]\niterations = 3\n')
    resolved = resolve(path)
    assert (resolved.config.train.iterations, resolved.config.model.model_dim) == (3, 64)
    assert resolved.origins["train.iterations"] == f"preset {path}"
    assert preset_path(path) == tmp_path / "mine.toml"


def test_a_preset_extends_several_as_the_command_line_puts_them_together(tmp_path):
    base = written(tmp_path, "base, a.toml", "[train]\niterations = 4\nseed = 5\n")
    mine = written(tmp_path, "mine.toml", 'extends = "leader_tiny, quant_trellis,./more.toml"\n[train]\nseed = 7\n')
    more = written(tmp_path, "more.toml", 'extends = "./base, a.toml"\n[quant]\nstates = 4\n')
    together = resolve(f"leader_tiny,quant_trellis,{more}", ["train.seed=7"])
    assert resolve(mine).config == together.config
    assert (together.config.train.iterations, together.config.quant.states) == (4, 4)
    assert together.origins["train.iterations"] == f"preset {base}"
    assert together.origins["quant.rounding"] == "preset quant_trellis"
    with pytest.raises(ConfigError, match="there is no preset ''"):
        resolve(written(tmp_path, "worse.toml", 'extends = "tiny,"'))


def test_a_file_is_known_by_its_slash_too(tmp_path, monkeypatch):
    written(tmp_path, "base", "[train]\niterations = 4\n")
    written(tmp_path, "mine", 'extends = "tiny,./base"\n[train]\nseed = 7\n')
    monkeypatch.chdir(tmp_path)
    for name in ("./mine", f"{tmp_path}/mine", "tiny,./mine"):
        found = resolve(name).config.train
        assert (found.iterations, found.seed) == (4, 7)
    with pytest.raises(ConfigError, match="there is no preset 'mine'"):
        resolve("mine")


def test_presets_that_extend_each_other_are_refused(tmp_path):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(f'extends = "{second}"\n')
    second.write_text(f'extends = "{first}"\n')
    with pytest.raises(ConfigError, match=r"circle: .*a\.toml -> .*b\.toml -> .*a\.toml"):
        resolve(str(first))


def test_a_preset_finds_its_parent_beside_itself(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    written(tmp_path / "here", "base.toml", "[train]\niterations = 4\n")
    path = written(tmp_path / "here", "mine.toml", 'extends = "./base.toml"\n[train]\nlog_every = 3\n')
    monkeypatch.chdir(tmp_path)
    assert resolve(path).config.train.iterations == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[train\n", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b"a = 1\na = 2\n", "not valid TOML"),
        (b"[train]\niterationz = 3\n", r"unknown key train\.iterationz in preset .*did you mean train.iterations"),
        (b"[train]\niterations = 3.5\n", r"3\.5 is not a value of type int \(train\.iterations from preset"),
        (b"trains = 3\n", "unknown key trains"),
        (b"[train]\nseed = nan\n", "not a value of type int"),
        (b"[optim]\neps = inf\n", "not a finite number"),
    ],
)
def test_a_bad_preset_is_refused_with_its_name(tmp_path, content, message):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(str(tmp_path / "bad.toml"))
    assert "bad.toml" in str(caught.value)


def test_a_missing_preset_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        resolve(str(tmp_path / "gone.toml"))
