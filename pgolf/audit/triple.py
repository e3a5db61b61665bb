"""What a published loss, BPB and number of tokens say together: bytes, and the mistake that would give those bytes."""

import math
import tomllib
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any

from pgolf.core.errors import ConfigError

RULES = Path(__file__).with_name("rules.toml")
TEXT_BYTES = 151_078_222
"""Bytes of the challenge's validation text, in whole windows of 2,048 tokens of sp8192 (spec: data 3)."""

EXPORT_TOKENS = 63_779_840
"""Targets of the export on which the naive baseline's record was logged."""


@cache
def rules() -> dict[str, list[dict[str, Any]]]:
    """The rules, signatures, streams and published figures, as tables."""
    return tomllib.loads(RULES.read_text())


def published(text: str, name: str) -> tuple[float, float]:
    """A printed number, and half a unit of its last digit over it. ConfigError if it is no positive number."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(0)
    if not value.is_finite() or value <= 0:
        raise ConfigError(f"{text!r} is no positive number", name)
    exponent = value.as_tuple().exponent
    return float(value), 0.5 * 10.0 ** int(exponent) / float(value)


def known_bytes(tokens: int) -> int:
    """Bytes of the validation text in a stream of so many targets, or in that of sp8192."""
    return {int(stream["tokens"]): int(stream["bytes"]) for stream in rules()["stream"]}.get(tokens, TEXT_BYTES)


def judge_bytes(found: float, expected: float, slack: float) -> dict[str, Any]:
    """What a number of bytes is, up to a relative `slack`: its ratio to the text's, and the signatures that fit."""
    ratio = found / expected
    fitting = [
        signature
        for signature in rules()["signature"]
        if signature["low"] - slack <= ratio <= signature["high"] + slack
    ]
    return {"bytes": round(found), "ratio": ratio, "slack": slack, "signatures": fitting}


def judge_triple(loss: str, bpb: str, tokens: int, expected: int | None = None) -> dict[str, Any]:
    """Judge printed figures; their last digits say how exactly. Sound is what fits the text's bytes, or those of the
    other export that the naive baseline was logged on.
    """
    nats, loss_slack = published(loss, "--loss")
    bits, bpb_slack = published(bpb, "--bpb")
    target = expected or known_bytes(tokens)
    found = judge_bytes(nats * tokens / (math.log(2) * bits), target, loss_slack + bpb_slack)
    names = [signature["name"] for signature in found["signatures"]]
    sound = "sound" in names or ("another export" in names and expected is None and tokens == EXPORT_TOKENS)
    found["signatures"] = [one for one in found["signatures"] if one["name"] != "sound" or len(names) == 1]
    what = (
        f"{found['bytes']:,} bytes, {found['ratio']:.4f} of the text's {target:,} (+- {found['slack']:.1g}): "
        f"{'sound' if sound else 'they cannot all be right'}"
    )
    return {**found, "loss": nats, "bpb": bits, "tokens": tokens, "expected": target, "sound": sound, "what": what}


def published_rows() -> list[dict[str, Any]]:
    """The published figures with their bytes, the loss that follows, and what the audit says of them."""
    rows = []
    for entry in rules()["published"]:
        size = entry["bytes"] if "bytes" in entry else entry["tokens"] * entry["bytes_per_token"]
        found = judge_bytes(size, known_bytes(entry.get("tokens", 0)), 0.0)
        names = [signature["name"] for signature in found["signatures"]]
        complete = "bpb" in entry and "tokens" in entry
        loss = entry["bpb"] * math.log(2) * size / entry["tokens"] if complete else None
        rows.append({**entry, "bytes": round(size), "loss": loss, "ratio": found["ratio"], "said": names})
    return rows
