"""MODEL on the command line: a checkpoint, a quantized model or an artifact; the file says which."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.config.load import resolve
from pgolf.config.run import RunConfig
from pgolf.config.tree import beyond_defaults, to_values
from pgolf.core.artifact import ARTIFACT_MAGIC, FORMS, INFO, decode_artifact, read_sections
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.files import check_regular, parse_json, read_bytes, read_head
from pgolf.core.model.config import ModelConfig, model_parts, param_specs
from pgolf.core.model.export import exported, exported_weights
from pgolf.core.model.gpt import GPT
from pgolf.core.quant.corrected import CorrectedTensor, Factors, corrected
from pgolf.core.quant.grid import StepTensor
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.tensorfile import load_tensors, save_tensors, tensor_meta
from pgolf.dataset import Dataset
from pgolf.layouts.methods import all_codecs

CHECKPOINT_SCHEMA, ARTIFACT_SCHEMA = "pgolf.checkpoint/1", "pgolf.artifact/1"
QUANTIZED_ROWS, QUANTIZED_STEPS, QUANTIZED_SCHEMA = (f"pgolf.quantized/{version}" for version in (1, 2, 3))
"""Version 1 has tensors with float16 scales by row alone, version 2 steps on the logarithmic grid too; the least that
is enough is written.
"""
FACTORS = ("a_codes", "a_scale", "b_codes", "b_scale")
"""Parts of a low-rank correction."""
MAX_ARTIFACT = 512 << 20
DESCRIBED = ("model", "eval", "ttt")
"""Sections of the configuration that an artifact carries."""


@dataclass
class ModelFile:
    """A model read from a file: float32 weights, what the file says of itself, and its identity."""

    path: Path
    kind: str
    sha256: str
    stored: dict[str, Any]
    config: RunConfig
    tokenizer_sha256: str
    weights: dict[str, Tensor]
    meta: dict[str, Any]
    quantized: QuantizedModel | None = None
    overridden: tuple[str, ...] = ()
    """What is not as the file has it, as `key old -> new`."""
    left: tuple[str, ...] = ()
    """Slots of the trained model that are empty in this one, which is what is exported of it."""

    def build(self, device: torch.device) -> GPT:
        """The model, ready to compute in float32 on a CPU or bfloat16 on a GPU."""
        return ready(self.config, self.weights, device)

    def exported(self) -> "ModelFile":
        """What is exported of a trained model, to be quantized; itself where that is everything."""
        trained, config = self.config.model, exported(self.config.model)
        if config == trained:
            return self
        left = tuple(sorted(model_parts(trained).keys() - model_parts(config).keys()))
        whole = dataclasses.replace(self.config, model=config)
        return dataclasses.replace(self, config=whole, weights=exported_weights(trained, self.weights), left=left)

    def describe(self) -> dict[str, Any]:
        """What JSON documents say of a model."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "sha256": self.sha256,
            "overridden": list(self.overridden),
        }


def ready(config: RunConfig, weights: dict[str, Tensor], device: torch.device) -> GPT:
    """The model of a run with these weights on a device. With flex, windows, gradients, and batches of one row or block
    have graphs of their own: more than the eight after which torch goes on without any, which takes all pairs' memory.
    """
    model = GPT(config.model)
    model.load_state_dict(weights)
    if model.settle(device, attention=config.train.attention_later).attention_backend == "flex":
        torch._dynamo.config.recompile_limit = 64
    return model.eval()


def stored_config(values: Any, where: str) -> RunConfig:
    """The configuration a file carries; InputError if this pgolf does not understand it."""
    if not isinstance(values, dict):
        raise InputError("the stored configuration is not a table", where, "the file is damaged")
    try:
        return resolve(stored=values, stored_name=where).config
    except ConfigError as error:
        raise InputError(
            f"the stored configuration is not understood: {error.what}", where, "use the pgolf that wrote the file"
        ) from None


def check_weights(config: ModelConfig, weights: dict[str, Tensor], where: str) -> None:
    """InputError unless names, shapes and values are those of a model of this configuration."""
    expected = {spec.name: spec.shape for spec in param_specs(config)}
    for name, shape in expected.items():
        if name not in weights:
            raise InputError(f"{name} is missing", where, "the file does not belong to this configuration")
        if tuple(weights[name].shape) != shape:
            raise InputError(f"{name} has shape {tuple(weights[name].shape)}, the configuration says {shape}", where)
    if extra := sorted(set(weights) - set(expected)):
        raise InputError(f"unknown tensor {extra[0]}", where, "the file does not belong to this configuration")


def save_checkpoint(path: Path, weights: dict[str, Tensor], meta: dict[str, Any]) -> str:
    """Write a checkpoint: float weights under canonical names, metadata as `docs/formats.md` says."""
    return save_tensors(path, weights, {"schema": CHECKPOINT_SCHEMA, **meta})


def save_quantized(path: Path, model: QuantizedModel, meta: dict[str, Any]) -> str:
    """Write a quantized model: NAME.codes, NAME.scale and what else the form has, the factors of a correction, or NAME
    for one kept as floats.
    """
    tensors: dict[str, Tensor] = {}
    coded = {name: tensor for name, tensor in model.tensors.items() if isinstance(tensor, QTensor)}
    for name, tensor in model.tensors.items():
        if isinstance(tensor, QTensor):
            base = tensor.base if isinstance(tensor, CorrectedTensor) else tensor
            tensors |= {f"{name}.{part}": getattr(base, part) for part in parts(type(base))}
            if isinstance(tensor, CorrectedTensor):
                tensors |= {f"{name}.{part}": getattr(tensor.factors, part) for part in FACTORS}
        else:
            tensors[name] = tensor
    facts: dict[str, Any] = {"schema": QUANTIZED_ROWS, "bits": {name: tensor.bits for name, tensor in coded.items()}}
    if forms := {type(tensor) for tensor in coded.values()} - {QTensor}:
        schema = QUANTIZED_STEPS if all(issubclass(form, StepTensor) for form in forms) else QUANTIZED_SCHEMA
        facts |= {"schema": schema, "forms": {name: tensor.kind for name, tensor in coded.items()}}
    return save_tensors(path, tensors, {**facts, **meta})


def parts(form: type[QTensor]) -> list[str]:
    """The tensors a form consists of."""
    return ["codes", *(name for name, *_ in form.sides)]


def upgrade_quantized(meta: dict[str, Any]) -> dict[str, Any]:
    """The metadata of version 1 as version 2 has it: every tensor of the one form there was."""
    return {**meta, "forms": dict.fromkeys(meta["bits"], QTensor.kind)} if isinstance(meta.get("bits"), dict) else meta


def identity(meta: dict[str, Any]) -> str:
    """SHA-256 of the tensors and their architecture: equal for equal models, whenever they were made."""
    model = meta["config"].get("model") if isinstance(meta.get("config"), dict) else None
    return hashlib.sha256(json.dumps([meta.get("tensors_sha256"), model], sort_keys=True).encode()).hexdigest()


def load_quantized(path: Path) -> ModelFile:
    """A quantized model, checked against its configuration: what is exported of the one it carries, or in files of
    before all of it.
    """
    tensors, meta, _ = load_tensors(path, QUANTIZED_SCHEMA, (QUANTIZED_ROWS, QUANTIZED_STEPS))
    meta = upgrade_quantized(meta) if meta["schema"] == QUANTIZED_ROWS else meta
    digest = identity(meta)
    config = stored_config(meta.get("config"), str(path))
    bits, forms, model = meta.get("bits"), meta.get("forms"), QuantizedModel(exported(config.model))
    if not isinstance(bits, dict) or not all(type(width) is int and 2 <= width <= 8 for width in bits.values()):
        raise InputError("the bit widths are missing or out of range", str(path), "the file is damaged")
    if not isinstance(forms, dict) or set(forms) != set(bits) or not set(forms.values()) <= set(FORMS):
        raise InputError("the forms of the codes are missing or unknown", str(path), "the file is damaged")
    try:
        for name, width in bits.items():
            form = FORMS[forms[name]]
            fields: dict[str, Any] = {part: tensors.pop(f"{name}.{part}") for part in parts(form)}
            tensor = form(bits=width, **fields)
            if f"{name}.{FACTORS[0]}" in tensors:
                tensor = corrected(tensor, Factors(*(tensors.pop(f"{name}.{part}") for part in FACTORS)))
            model.tensors[name] = tensor
    except KeyError as error:
        raise InputError(f"{error.args[0]} is missing", str(path), "the file is damaged") from None
    model.tensors |= tensors
    if all(spec.name in model.tensors for spec in param_specs(config.model)):
        model.config = config.model
    config = dataclasses.replace(config, model=model.config)
    model.assure_sound(str(path))
    return ModelFile(
        path,
        "quantized",
        digest,
        meta["config"],
        config,
        str(meta.get("tokenizer_sha256", "")),
        model.weights(),
        meta,
        model,
    )


def load_checkpoint(path: Path) -> ModelFile:
    """A float checkpoint, checked against its configuration."""
    tensors, meta, _ = load_tensors(path, CHECKPOINT_SCHEMA)
    digest = identity(meta)
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    config = stored_config(meta.get("config"), str(path))
    check_weights(config.model, weights, str(path))
    return ModelFile(
        path, "checkpoint", digest, meta["config"], config, str(meta.get("tokenizer_sha256", "")), weights, meta
    )


def artifact_info(config: RunConfig, tokenizer_sha256: str, model: ModelConfig | None = None) -> bytes:
    """What an artifact says of itself: architecture (`model`, or what is exported of the configuration's), how it was
    scored, whose tokens it reads. These bytes count, twice where a script makes the artifact, so what is the default is
    left out: those defaults stay what they are (`tests/unit/test_artifact_defaults.py`).
    """
    whole = dataclasses.replace(config, model=model or exported(config.model))
    values = beyond_defaults(whole, RunConfig())
    kept = {name: values[name] for name in DESCRIBED if name in values}
    return json.dumps(
        {"schema": ARTIFACT_SCHEMA, "tokenizer_sha256": tokenizer_sha256, "config": kept},
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


def load_artifact(path: Path, programs: bool = False) -> ModelFile:
    """An artifact, decoded and verified. SetupError if it needs a program that `programs` does not allow to run."""
    blob = read_bytes(path, MAX_ARTIFACT)
    codecs, where = all_codecs(programs), str(path)
    sections = read_sections(blob, codecs, where, only=INFO)
    info = parse_json(sections.get(INFO, b"null"), where)
    if not isinstance(info, dict) or info.get("schema") != ARTIFACT_SCHEMA:
        raise InputError(
            "the artifact does not describe itself as one of pgolf's", where, "use the pgolf that wrote it"
        )
    if not isinstance(kept := info.get("config"), dict) or not set(kept) <= set(DESCRIBED):
        raise InputError("the artifact's configuration is not that of a model and its scores", where, "make it anew")
    config = stored_config(kept, where)
    model = decode_artifact(blob, config.model, codecs, where)
    digest = hashlib.sha256(blob).hexdigest()
    values = to_values(config)
    return ModelFile(
        path,
        "artifact",
        digest,
        {name: values[name] for name in DESCRIBED},
        config,
        str(info.get("tokenizer_sha256", "")),
        model.weights(),
        info,
        model,
    )


def load_model(path: Path) -> ModelFile:
    """Any of the three. InputError if the file is none of them."""
    if path.is_dir():
        raise InputError("a directory was given where a model file is expected", str(path), "name the file in it")
    check_regular(path)
    if read_head(path, 4) == ARTIFACT_MAGIC or path.suffix == ".pgz":
        return load_artifact(path)
    meta, _ = tensor_meta(path)
    return load_quantized(path) if str(meta.get("schema", "")).startswith("pgolf.quantized/") else load_checkpoint(path)


def with_tokenizer(model: ModelFile, dataset: Dataset) -> ModelFile:
    """The model, with its data's tokenizer where its file names none, as that of an import. InputError where the data
    was tokenized by another.
    """
    check_tokenizer(model, dataset.tokenizer_sha256, dataset.vocab_size, str(dataset.folder))
    return replace(model, tokenizer_sha256=model.tokenizer_sha256 or dataset.tokenizer_sha256)


def check_tokenizer(model: ModelFile, dataset_sha256: str, vocab_size: int, where: str) -> None:
    """InputError if the data was tokenized by another tokenizer than the model was trained with."""
    if model.tokenizer_sha256 and model.tokenizer_sha256 != dataset_sha256:
        raise InputError(
            "the data's tokenizer is not the one the model was trained with",
            where,
            "use the dataset of the model's training run",
        )
    if model.config.model.vocab_size < vocab_size:
        raise InputError(
            f"the tokenizer has {vocab_size} ids, the model {model.config.model.vocab_size}",
            where,
            "use the model's own tokenizer",
        )
