"""What the submission script does: train, quantize, compress and score one recipe, or score a given artifact."""

import argparse
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.artifact import decode_artifact, encode_artifact
from pgolf.core.bpb import load_tokenizer, validation_stream
from pgolf.core.codecs.base import Codec
from pgolf.core.dist import World, join_world, wants_compile
from pgolf.core.errors import PgolfError
from pgolf.core.evals.base import EvalMethod
from pgolf.core.evals.ledger import EvalWatch, evaluate
from pgolf.core.files import make_dir, read_bytes, sha256_file, write_bytes
from pgolf.core.model.config import ModelConfig
from pgolf.core.model.export import exported, exported_weights
from pgolf.core.model.gpt import GPT
from pgolf.core.optim.config import OptimConfig
from pgolf.core.quant.base import TURNS, Quantizer, quantize_model
from pgolf.core.quant.gptq import NEEDS
from pgolf.core.quant.tuning import TUNINGS
from pgolf.core.shards import TrainStream, list_shards, load_split
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.loop import Watch, fit, start_state, validator


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One recipe with the one method that makes its score. `info` is the artifact's description of itself, JSON."""

    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig
    quant: Quantizer
    compress: Codec
    score: EvalMethod
    info: str


def say(world: World, text: str) -> None:
    """A log line from the first rank."""
    if world.leads:
        print(text, flush=True)


def log_event(world: World, event: dict[str, Any], iterations: int) -> None:
    """Training events in the form the challenge's reviewers know."""
    head, ms = f"{event['step']}/{iterations}", f"train_time: {1000 * event['elapsed_s']:.0f}ms"
    if event["event"] == "stop":
        say(world, f"stopping: {event['reason']} {ms} step: {head}")
    elif event["event"] == "mode":
        say(world, f"{head} layer_loop: {event['looping']} {ms}")
    elif "val_loss" in event:
        say(world, f"{head} val_loss: {event['val_loss']:.8f} val_bpb: {event['val_bpb']:.8f} {ms}")
    elif event["shown"]:
        speed = f"train_time: {event['elapsed_s'] / 60:.1f}m tok/s: {event['tokens_per_s']:.0f}"
        say(world, f"{head} train_loss: {event['loss']:.4f} {speed}")


def train_recipe(
    recipe: Submission,
    seed: int,
    data: Path,
    tokenizer: Any,
    tokens: np.ndarray,
    charges: np.ndarray,
    world: World,
) -> GPT:
    """Train as pgolf does, step for step; the first rank logs."""
    shards = load_split(list_shards(data, "train"), recipe.model.vocab_size)
    token_bytes = recipe.train.loss.token_table(tokenizer, recipe.model.vocab_size)
    state = start_state(recipe.model, recipe.train, recipe.optim, shards, seed, world, token_bytes)
    parameters = sum(weight.numel() for weight in state.model.parameters())
    say(
        world,
        f"train_shards: {len(shards)}\nmodel_params:{parameters}\nattention:{state.model.attention_backend}",
    )

    validate = validator(state.model, recipe.train, tokens, charges, EvalWatch(world))
    watch = Watch(
        lambda event: log_event(world, event, recipe.train.iterations), validate, lambda state: None, lambda: False
    )
    fit(state, recipe.train, recipe.optim, world, watch, wants_compile(recipe.train.compile, world.device))
    return state.model


def exported_recipe(recipe: Submission) -> Submission:
    """The recipe with the model that its artifact holds."""
    return type(recipe)(**{**vars(recipe), "model": exported(recipe.model)})


def exported_model(model: GPT) -> GPT:
    """A trained model as its artifact holds it, not yet quantized."""
    found, weights = GPT(exported(model.config)), {key: weight.cpu() for key, weight in model.state_dict().items()}
    found.load_state_dict(exported_weights(model.config, weights))
    return found.to(next(model.parameters()).device)


EXPORTED = {"recipe": exported_recipe}
"""What leads from the recipe as trained to that of the artifact; a script has it where the two differ."""


def make_artifact(recipe: Submission, model: GPT, data: Path) -> bytes:
    """Quantize and compress the trained weights."""
    for change in EXPORTED.values():
        recipe, model = change(recipe), exported_model(model)
    model.settle(next(model.parameters()).device, attention=recipe.train.attention_later)
    stream = TrainStream(load_split(list_shards(data, "train"), recipe.model.vocab_size))
    known = recipe.quant.prepare(model, stream, lambda done: None)
    for turn in TURNS.values():
        known |= turn(recipe.quant, model, stream)
    weights = {name: weight.detach().cpu() for name, weight in model.state_dict().items()}
    made = quantize_model(recipe.model, weights, recipe.quant, known)
    for tune in TUNINGS.values():
        made = tune(recipe.quant, made, model, stream, lambda done: None)
    return encode_artifact(made, recipe.compress, recipe.info.encode())


def run_submission(recipe: Submission, code: Path, argv: list[str]) -> int:
    """The script's command line; returns its exit code."""
    size = recipe.model.vocab_size
    parser = argparse.ArgumentParser(description="Train, quantize, compress and score; with --artifact only score.")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(f"./data/datasets/fineweb10B_sp{size}"),
        help="token shards",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=Path(f"./data/tokenizers/fineweb_{size}_bpe.model"),
        help="SentencePiece model",
    )
    parser.add_argument("--seed", type=int, default=recipe.train.seed, help="seed of the initial weights")
    parser.add_argument("--artifact", type=Path, help="score this artifact and train nothing")
    parser.add_argument("--out", type=Path, default=Path("model.pgz"), help="artifact to write")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    try:
        return score_submission(recipe, code, parser.parse_args(argv))
    except PgolfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def score_submission(recipe: Submission, code: Path, options: argparse.Namespace) -> int:
    """Train unless an artifact is given, then score the artifact as read back from disk."""
    start = time.monotonic()
    world = join_world(options.device)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    tokenizer = load_tokenizer(read_bytes(options.tokenizer, 1 << 26), str(options.tokenizer))
    tokens, charges = validation_stream(options.data, tokenizer, recipe.model.vocab_size)
    say(world, f"val_tokens: {len(tokens) - 1}\nseed:{options.seed}")
    artifact = options.artifact or options.out
    if options.artifact is None:
        for check in NEEDS.values():
            check(recipe.quant, world.device)
        model = train_recipe(recipe, options.seed, options.data, tokenizer, tokens, charges, world)
        if world.leads:
            make_dir(artifact.parent)
            write_bytes(artifact, make_artifact(recipe, model, options.data))
    world.largest(0.0)  # wait for the file
    blob = read_bytes(artifact, 1 << 29)
    for change in EXPORTED.values():
        recipe = change(recipe)
    model = GPT(recipe.model).settle(world.device, attention=recipe.train.attention_later).eval()
    model.load_state_dict(
        decode_artifact(blob, recipe.model, {recipe.compress.codec_id: recipe.compress}, str(artifact)).weights()
    )
    code_bytes = code.stat().st_size
    say(world, f"Code size: {code_bytes} bytes\nTotal submission size: {len(blob) + code_bytes} bytes")
    score, _ = evaluate(model, tokens, charges, recipe.score, EvalWatch(world))
    seconds = time.monotonic() - start
    say(
        world,
        f"final val_loss:{score.val_loss:.8f} val_bpb:{score.bpb:.8f} eval_time:{1000 * seconds:.0f}ms",
    )
    say(
        world,
        json.dumps(
            {
                "score": score.document(),
                "artifact_sha256": sha256_file(artifact),
                "artifact_bytes": len(blob),
                "code_bytes": code_bytes,
            }
        ),
    )
    world.close()
    return 0
