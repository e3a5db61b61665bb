"""Layers of plain values become one typed tree and back; later layers win, and whatever does not fit is named."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.catalog import CATALOG, load, name_of, selector
from pgolf.config.load import preset_names, resolve
from pgolf.config.run import RunConfig
from pgolf.config.tree import Layer, Text, build_config, flatten, parse_set, scalar, to_values
from pgolf.core.codecs.brotli import Brotli
from pgolf.core.codecs.lzma import Lzma
from pgolf.core.errors import ConfigError
from pgolf.core.evals.plain import PlainEval
from pgolf.core.evals.sliding import SlidingEval
from pgolf.core.model.parts.multi_token import TokenHeads
from pgolf.core.model.parts.untied_embed import UntiedEmbed
from pgolf.core.model.parts.z_loss import ZLoss
from pgolf.core.model.slots import Absent
from pgolf.core.optim.schedules import FractionWarmdown, IterationWarmdown
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.row_quantile import RowQuantile
from pgolf.core.quant.sdclip import SdClip
from pgolf.core.ttt.chunk import ChunkTtt
from pgolf.core.ttt.steppers import TttSgd
from pgolf.core.ttt.weights import WeightTraining


def built(*layers):
    """Config and origins of layers given as dicts, named a, b, c, ..."""
    return build_config(RunConfig(), [Layer(name, values) for name, values in zip("abcdef", layers, strict=False)])


def set_values(*assignments):
    """The config of the defaults with --set assignments."""
    return resolve(sets=list(assignments)).config


def complaint(*assignments):
    """The message with which --set assignments are refused."""
    with pytest.raises(ConfigError) as caught:
        resolve(sets=list(assignments))
    assert caught.value.exit_code == 2
    return str(caught.value)


# Layers and origins


def test_no_layer_gives_the_defaults():
    config, origins = built()
    assert config == RunConfig()
    assert set(origins.values()) == {"default"}
    assert set(origins) == set(flatten(to_values(config)))


def test_later_layers_win_key_by_key():
    config, origins = built(
        {"train": {"iterations": 10, "seq_len": 64, "batch_tokens": 640, "micro_batch_tokens": 640}},
        {"train": {"iterations": 20}, "model": {"mlp": {"mult": 3.0}}},
        {"model": {"num_layers": 4}},
    )
    assert (config.train.iterations, config.train.seq_len, config.model.mlp.mult, config.model.num_layers) == (
        20,
        64,
        3.0,
        4,
    )
    assert origins["train.iterations"] == "b"
    assert origins["train.seq_len"] == "a"
    assert origins["model.mlp.mult"] == "b"
    assert origins["model.num_layers"] == "c"
    assert origins["model.mlp.kind"] == origins["train.seed"] == "default"


def test_a_default_repeated_by_a_layer_has_that_layer_as_origin():
    config, origins = built({"train": {"seed": 1337}})
    assert config == RunConfig()
    assert origins["train.seed"] == "a"


def test_the_order_of_sources():
    stored = {"train": {"iterations": 1, "log_every": 2, "seed": 3}, "model": {"vocab_size": 77}}
    resolved = resolve("tiny", ["train.iterations=9", "train.iterations=10"], stored, "model.pgz")
    assert resolved.config.train.iterations == 10
    assert resolved.config.train.seed == 3
    assert resolved.config.model.vocab_size == 512
    assert resolved.origins["train.iterations"] == "--set train.iterations=10"
    assert resolved.origins["train.log_every"] == "preset tiny"
    assert resolved.origins["train.seed"] == "model.pgz"
    assert resolved.origins["quant.bits"] == "preset demo"
    assert resolved.origins["train.loader.kind"] == "default"
    assert resolve(stored=stored, stored_name="model.pgz").origins["model.vocab_size"] == "model.pgz"


def test_the_recipe_is_the_part_that_ships():
    config = set_values("model.num_layers=3", "package.name=x")
    assert config.recipe.model.num_layers == 3
    assert not hasattr(config.recipe, "package")
    assert config.recipe.train is config.train


# Values


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("train.iterations=12", "train.iterations", 12),
        ("train.max_wallclock_seconds=0", "train.max_wallclock_seconds", 0.0),
        ("optim.eps=1e-10", "optim.eps", 1e-10),
        ("package.prove=off", "package.prove", False),
        ("package.prove=True", "package.prove", True),
        ("package.name=a = b, c", "package.name", "a = b, c"),
        (" train.iterations = 12 ", "train.iterations", 12),
        ("package.name=", "package.name", ""),
        ("package.name=7", "package.name", "7"),
    ],
)
def test_set_is_read_by_the_type_of_the_field(assignment, key, value):
    found = flatten(resolve(sets=[assignment]).values)[key]
    assert found == value
    assert type(found) is type(value)


def test_an_integer_in_a_file_may_stand_for_a_float():
    config, _ = built({"model": {"mlp": {"mult": 3}}})
    assert type(config.model.mlp.mult) is float


@pytest.mark.parametrize("assignment", ["nonsense", "=5", "a..b=1", "a.b c=1", ".a=1", "a-b=1", "", "1a=2"])
def test_set_needs_a_dotted_key_and_a_value(assignment):
    assert "dotted.key=value" in complaint(assignment)


def test_parse_set_makes_nested_text():
    assert parse_set("a.b.c=x=y") == {"a": {"b": {"c": "x=y"}}}
    assert type(parse_set("a=1")["a"]) is Text
    assert [parse_set(text) for text in ("a= b ", "a=", "a=\n", "a= ")] == [{"a": one} for one in ("b", "", "\n", " ")]


@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        ("train.iterations=many", "'many' is not a value of type int"),
        ("train.iterations=1.5", "'1.5' is not a value of type int"),
        ("train.iterations=", "'' is not a value of type int"),
        ("optim.token_lr=fast", "'fast' is not a value of type float"),
        ("optim.token_lr=nan", "not a finite number"),
        ("optim.token_lr=1e999", "not a finite number"),
        ("package.prove=maybe", "'maybe' is not a value of type bool"),
        ("package.prove=1", "'1' is not a value of type bool"),
    ],
)
def test_text_of_a_wrong_type_names_key_and_source(assignment, wanted):
    message = complaint(assignment)
    assert wanted in message
    assert assignment.partition("=")[0] in message
    assert f"--set {assignment}" in message


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"train": {"iterations": "12"}}, "'12' is not a value of type int (train.iterations from a)"),
        ({"train": {"iterations": 12.0}}, "12.0 is not a value of type int (train.iterations from a)"),
        ({"train": {"iterations": True}}, "True is not a value of type int (train.iterations from a)"),
        ({"package": {"prove": 1}}, "1 is not a value of type bool (package.prove from a)"),
        ({"optim": {"token_lr": float("inf")}}, "inf is not a finite number (optim.token_lr from a)"),
        ({"optim": {"token_lr": True}}, "True is not a value of type float (optim.token_lr from a)"),
        ({"train": {"iterations": [1]}}, "[1] is not a value of type int"),
        ({"train": {"iterations": {"x": 1}}}, "is not a value of type int"),
        ({"train": {"compile": None}}, "None is not a value of type str"),
        ({"train": 5}, "train is a section, not a value"),
        ({"model": {"mlp": 5}}, "model.mlp is a section, not a value"),
        ({"model": "big"}, "model is a section, not a value"),
    ],
)
def test_a_value_of_a_wrong_type_in_a_file_is_named(values, wanted):
    with pytest.raises(ConfigError) as caught:
        built(values)
    assert wanted in str(caught.value)


def test_scalar_returns_plain_types():
    assert type(scalar(Text("x"), str, "k", "s")) is str
    assert scalar(Text("TRUE"), bool, "k", "s") is True


# Unknown keys


@pytest.mark.parametrize(
    ("assignment", "unknown", "hint"),
    [
        ("model.num_layer=3", "model.num_layer", "did you mean model.num_layers"),
        ("modle.num_layers=3", "modle", "did you mean model"),
        ("quant.bit=3", "quant.bit", "did you mean quant.bits"),
        ("optim.matrix.momentun=0.9", "optim.matrix.momentun", "did you mean optim.matrix.momentum"),
        ("ttt.qqqqqqqq=1", "ttt.qqqqqqqq", "known are"),
    ],
)
def test_an_unknown_key_gets_a_hint(assignment, unknown, hint):
    message = complaint(assignment)
    assert f"unknown key {unknown} in --set {assignment}" in message
    assert hint in message


@pytest.mark.parametrize(
    ("assignment", "unknown", "hint"),
    [
        ("quant.method=gtpq", "unknown method 'gtpq' (quant.method)", "did you mean gptq"),
        ("model.embed.kind=tide", "unknown kind 'tide' (model.embed.kind)", "did you mean tied or untied"),
        ("compress=zsdt", "unknown method 'zsdt' (compress.method)", "did you mean zstd"),
        ("eval.method=xxxxx", "unknown method 'xxxxx'", "known are document, overlap, plain, sliding"),
    ],
)
def test_an_unknown_choice_gets_a_hint(assignment, unknown, hint):
    message = complaint(assignment)
    assert unknown in message
    assert hint in message


# Slots


def test_a_name_alone_chooses_a_class():
    config = set_values("model.embed=untied", "compress=lzma", "optim.warmdown=fraction")
    assert config.model.embed == UntiedEmbed()
    assert config.compress == Lzma()
    assert config.optim.warmdown == FractionWarmdown()


def test_switching_a_slot_starts_from_the_new_defaults_but_keeps_shared_keys():
    config, origins = built(
        {"quant": {"method": "gptq", "bits": 5, "k": 9.0, "block": 32, "embed": {"bits": 7, "k": 15.0}}},
        {"quant": {"method": "sdclip"}},
    )
    assert type(config.quant) is SdClip
    assert (config.quant.bits, config.quant.k, config.quant.embed.bits) == (5, 9.0, 7)
    assert origins["quant.method"] == "b"
    assert origins["quant.bits"] == origins["quant.embed.k"] == "a"
    assert "quant.block" not in origins


def test_keys_the_new_class_does_not_know_are_dropped():
    config, origins = built(
        {"quant": {"method": "gptq", "bits": 5, "damping": 0.1}}, {"quant": {"method": "row_quantile"}}
    )
    assert config.quant == RowQuantile()
    assert origins["quant.bits"] == "default"
    config, origins = built({"quant": {"method": "gptq", "bits": 5, "damping": 0.1}}, {"quant": {"method": "sdclip"}})
    assert (config.quant.bits, origins["quant.bits"]) == (5, "a")
    config, _ = built({"compress": {"method": "brotli", "quality": 3}}, {"compress": "lzma"})
    assert config.compress == Lzma()


def test_switching_back_and_forth_keeps_what_fits():
    config, _ = built(
        {"compress": {"method": "brotli", "quality": 3}},
        {"compress": {"method": "lzma"}},
        {"compress": {"method": "brotli"}},
    )
    assert config.compress == Brotli(quality=3)


def test_the_layer_that_switches_may_set_the_new_keys():
    config, _ = built({"eval": {"method": "plain", "seq_len": 256}}, {"eval": {"method": "sliding", "stride": 16}})
    assert config.eval == SlidingEval(seq_len=256, stride=16)
    config, _ = built({"optim": {"warmdown": {"iters": 7}}}, {"optim": {"warmdown": {"kind": "fraction", "frac": 0.5}}})
    assert config.optim.warmdown == FractionWarmdown(frac=0.5)


def test_keys_of_the_old_class_after_the_switch_are_refused():
    with pytest.raises(ConfigError, match=r"unknown key quant\.block in b"):
        built({"quant": {"method": "sdclip"}}, {"quant": {"block": 32}})
    with pytest.raises(ConfigError, match=r"unknown key optim\.warmdown\.iters in a"):
        built({"optim": {"warmdown": {"kind": "fraction", "iters": 5}}})
    assert "unknown key eval.stride in --set eval.stride=8" in complaint("eval.method=plain", "eval.stride=8")


@pytest.mark.parametrize(
    ("assignments", "hint"),
    [
        (("eval.method=plain", "eval.stride=8"), "that is a key of eval.method=sliding or "),
        (("ttt.method=chunk", "ttt.rank=8"), "that is a key of ttt.method=lora or "),
        (("model.loop.extra_passes=1",), "that is a key of model.loop.kind="),
    ],
)
def test_a_key_of_another_class_is_said_to_be_one(assignments, hint):
    assert hint in complaint(*assignments)


def test_naming_the_class_that_is_chosen_already_changes_nothing():
    config, _ = built({"optim": {"warmdown": {"iters": 7}}}, {"optim": {"warmdown": {"kind": "iterations"}}})
    assert config.optim.warmdown == IterationWarmdown(iters=7)
    config, _ = built({"eval": {"method": "plain", "seq_len": 64}}, {"eval": "plain"})
    assert config.eval == PlainEval(seq_len=64)


def test_naming_the_class_of_the_default_keeps_the_default():
    start = set_values("eval=sliding", "eval.seq_len=64", "eval.stride=8")
    config, origins = build_config(start, [Layer("a", {"eval": {"method": "sliding", "seq_len": 32}})])
    assert config.eval == SlidingEval(seq_len=32, stride=8)
    assert origins["eval.stride"] == "default"


def test_a_typo_before_a_switch_is_still_a_typo():
    assert "quant.bitz" in complaint("quant.bitz=5", "quant.method=gptq")


def test_a_typo_is_not_hidden_by_naming_the_same_class_again():
    with pytest.raises(ConfigError, match=r"quant\.dampnig"):
        built({"quant": {"method": "gptq", "dampnig": 0.1}}, {"quant": {"method": "gptq"}})


# Checks of the dataclasses reach the user


@pytest.mark.parametrize(
    ("assignments", "key"),
    [
        (["model.num_heads=7"], "model.model_dim"),
        (["model.mlp.mult=0"], "model.mlp.mult"),
        (["train.batch_tokens=1000"], "train.batch_tokens"),
        (["train.compile=maybe"], "train.compile"),
        (["compress.level=10"], "compress.level"),
        (["optim.warmdown.iters=-1"], "optim.warmdown.iters"),
        (["quant.method=sdclip", "quant.bits=3"], "quant.bits"),
        (["eval.method=sliding", "eval.stride=5000"], "eval.stride"),
        (["tokenize.split=odd"], "tokenize.split"),
        (["package.cap_bytes=0"], "package.cap_bytes"),
        (["package.author=a\x07b"], "package.author"),
    ],
)
def test_impossible_values_name_their_key(assignments, key):
    assert f"({key})" in complaint(*assignments)


@pytest.mark.parametrize(
    ("assignments", "key"),
    [
        (["ttt.stride=5000"], "ttt.stride"),
        (["ttt.seq_len=0"], "ttt"),
        (["quant.method=sdclip", "quant.embed.bits=3"], "quant.embed"),
    ],
)
def test_a_shared_class_names_the_section_the_user_set(assignments, key):
    assert f"({key}" in complaint(*assignments)


def test_a_seed_that_no_generator_takes_is_refused():
    assert set_values(f"train.seed={2**63 - 1}").train.seed == 2**63 - 1
    assert "train.seed" in complaint(f"train.seed={2**64}")


# There and back

FREE = {
    "model.num_layers": st.integers(1, 12),
    "model.vocab_size": st.integers(1, 65536),
    "model.mlp.mult": st.floats(0.5, 8),
    "model.embed.kind": st.sampled_from(["tied", "untied"]),
    "model.embed.init_std": st.floats(0, 2),
    "model.position.base": st.floats(1.5, 1e6),
    "optim.token_lr": st.floats(0, 1),
    "optim.eps": st.floats(1e-12, 1e-3),
    "optim.matrix.lr": st.floats(0, 1),
    "optim.matrix.bfloat16": st.booleans(),
    "optim.warmdown.kind": st.sampled_from(["fraction", "iterations"]),
    "train.iterations": st.integers(1, 10**9),
    "train.seed": st.integers(0, 2**31),
    "train.precision": st.sampled_from(["auto", "float32", "bfloat16"]),
    "quant.method": st.sampled_from(["row_quantile", "sdclip", "gptq"]),
    "quant.bits": st.integers(4, 8),
    "compress.method": st.sampled_from(sorted(CATALOG["Codec"])),
    "eval.method": st.sampled_from(["plain", "sliding"]),
    "eval.batch_seqs": st.integers(1, 99),
    "ttt.lr": st.floats(0, 1),
    "ttt.max_tokens": st.integers(0, 9),
    "tokenize.val_share": st.floats(0.01, 0.99),
    "package.name": st.text(st.characters(categories=["L", "N", "P"]), max_size=12),
    "package.prove": st.booleans(),
}
assignments = st.dictionaries(st.sampled_from(sorted(FREE)), st.none(), max_size=8).flatmap(
    lambda keys: st.fixed_dictionaries({key: FREE[key] for key in keys})
)


def fitting(preset, chosen):
    """Choices first, values after; the models of records keep their sizes, which their parts depend on, and quantizers
    by role have no bits of their own.
    """
    record = preset.startswith(("pr", "leader", "ternary"))
    by_role = preset.startswith(("ternary", "pr638")) and "quant.method" not in chosen
    kept = {key: value for key, value in chosen.items() if not (record and key.startswith("model."))}
    kept = {key: value for key, value in kept.items() if not (by_role and key == "quant.bits")}
    return dict(sorted(kept.items(), key=lambda item: not item[0].endswith(("kind", "method"))))


@settings(max_examples=150)
@given(st.sampled_from(["", *preset_names()]), assignments)
def test_values_and_config_are_two_forms_of_one_thing(preset, chosen):
    chosen = fitting(preset, chosen)
    resolved = resolve(preset, [f"{key}={value}" for key, value in chosen.items()])
    values = json.loads(json.dumps(resolved.values))
    again, origins = build_config(RunConfig(), [Layer("stored", values)])
    assert again == resolved.config
    assert set(origins.values()) == {"stored"}
    assert to_values(again) == resolved.values
    flat = flatten(values)
    assert set(flat) == set(origins) == set(resolved.origins)
    for key, value in chosen.items():
        assert flat[key] == value
        assert resolved.origins[key] == f"--set {key}={value}"
    untouched = [key for key in flat if key not in chosen]
    allowed = {"default", *(f"preset {name}" for name in preset_names())}
    assert {resolved.origins[key] for key in untouched} <= allowed


@settings(max_examples=50)
@given(st.sampled_from(["", *preset_names()]), assignments)
def test_the_repr_of_a_recipe_is_its_source(preset, chosen):
    chosen = fitting(preset, chosen)
    recipe = resolve(preset, [f"{key}={value}" for key, value in chosen.items()]).config.recipe
    names = {cls.__name__: cls for slot in CATALOG for cls in (load(slot, name) for name in CATALOG[slot])}
    names |= {type(part).__name__: type(part) for part in (recipe, recipe.model, recipe.optim, recipe.train)}
    names |= {"Grid": type(SdClip().embed), "WeightTraining": WeightTraining}
    assert eval(repr(recipe), {"__builtins__": {}}, names) == recipe


def test_a_stored_configuration_of_before_the_optimizers_of_test_time_training_had_a_section():
    old = {"method": "chunk_sgd", "seq_len": 512, "chunk_tokens": 2048, "lr": 0.01, "momentum": 0.7, "epochs": 2}
    wanted = ChunkTtt(seq_len=512, chunk_tokens=2048, lr=0.01, optimizer=TttSgd(momentum=0.7), epochs=2)
    stored = {"ttt": dict(old)}
    assert resolve(stored=stored).config.ttt == wanted
    assert stored == {"ttt": old}


def test_a_stored_configuration_of_before_heads_for_later_tokens_had_a_slot_of_their_own():
    stored = {"model": {"aux_loss": {"kind": "multi_token", "extra_tokens": 3, "weight": 0.1}}}
    found = resolve(stored=stored).config.model
    assert found.multi_token == TokenHeads(extra_tokens=3, weight=0.1)
    assert isinstance(found.aux_loss, Absent)
    kept = resolve(stored={"model": {"aux_loss": {"kind": "z_loss", "weight": 0.1}}}).config.model
    assert kept.aux_loss == ZLoss(weight=0.1) and isinstance(kept.multi_token, Absent)


@pytest.mark.parametrize(
    "ttt",
    [
        {"method": ["chunk_sgd"]},
        {"method": {"chunk_sgd": 1}},
        {"momentum": 0.5, "optimizer": 5},
        {"momentum": 0.5, "optimizer": "sgd"},
    ],
)
def test_stored_values_of_another_shape_are_refused(ttt):
    with pytest.raises(ConfigError):
        resolve(stored={"ttt": ttt})


@pytest.mark.parametrize("slot", CATALOG)
def test_the_catalog_names_classes_and_back(slot):
    for name in CATALOG[slot]:
        assert name_of(slot, load(slot, name)) == name
    assert selector(slot) in ("method", "kind")


def test_every_technique_can_be_chosen_by_name():
    for method in CATALOG["Quantizer"]:
        assert type(set_values(f"quant={method}").quant) is load("Quantizer", method)
    for codec in CATALOG["Codec"]:
        assert type(set_values(f"compress.method={codec}").compress) is load("Codec", codec)
    assert type(set_values("quant=gptq").quant) is Gptq


def test_codec_numbers_are_distinct():
    numbers = [load("Codec", name).codec_id for name in CATALOG["Codec"]]
    assert sorted(numbers) == sorted(set(numbers))


# What other values fill in


@pytest.mark.parametrize("stage", ["eval", "ttt"])
def test_a_stretch_begins_where_training_ended(stage):
    sets = ["train.seq_len=128", f"{stage}.seq_len=512"]
    for kind, more in (("ntk", {}), ("yarn", {"longest": 512})):
        resolved = resolve("tiny", [*sets, f"{stage}.rope={kind}"])
        rope = getattr(resolved.config, stage).rope
        assert {"trained": 128, **more} == to_values(rope)
        assert resolved.origins[f"{stage}.rope.trained"] == "train.seq_len, windows"
        stored = resolve(stored=resolved.values, sets=["train.seq_len=64"])
        assert getattr(stored.config, stage).rope == rope, "what a file says stays"
    given = resolve("tiny", [*sets, f"{stage}.rope=yarn", f"{stage}.rope.trained=64", f"{stage}.rope.longest=999"])
    assert to_values(getattr(given.config, stage).rope) == {"trained": 64, "longest": 999}


@pytest.mark.parametrize("kind", ["ntk", "yarn"])
@pytest.mark.parametrize("window", [64, 48])
def test_a_stretch_of_nothing_is_refused(kind, window):
    with pytest.raises(ConfigError, match=f"trained on rows of 64 tokens, and windows have {window}") as caught:
        resolve("tiny", [f"eval.seq_len={window}", "eval.stride=8", f"eval.rope={kind}"])
    assert caught.value.where == "eval.rope" and "above 64" in caught.value.fix
    resolve("tiny", [f"eval.seq_len={window}", "eval.stride=8", f"eval.rope={kind}", "eval.rope.trained=32"])
