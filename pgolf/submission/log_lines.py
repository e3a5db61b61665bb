"""The log of a seed with the lines that reviewers grep for, in their spelling (spec: submission 6)."""

from itertools import groupby
from typing import Any

from pgolf.accounting import Size, bpb_of
from pgolf.catalog import name_of
from pgolf.config.run import RunConfig
from pgolf.core.files import read_bytes
from pgolf.submission.document import calibration_seconds, training_seconds
from pgolf.submission.entries import Entry

MAX_LOG = 1 << 30
METRICS = {
    "plain": "quantized",
    "sliding": "quantized_sliding_window",
    "chunk": "quantized_ttt",
    "lora": "quantized_ttt_lora",
    "phased": "quantized_ttt_phased",
}
"""Method -> how the records' logs call its final line; others are quantized_METHOD."""


def metric(head: str, score: dict[str, Any], seconds: float) -> str:
    """A line of a score."""
    return f"{head} val_loss:{score['val_loss']:.8f} val_bpb:{bpb_of(score):.8f} eval_time:{1000 * seconds:.0f}ms"


def diagnostic(entry: Entry, form: str, head: str) -> list[str]:
    """The line of the float or the quantized model's score, if there is one."""
    found = [one.document for one in entry.scores if one.form == form and one.stage == "eval"]
    return [metric(head, one["score"], one["seconds"]["score"]) for one in found[:1]]


def quantized_weights(entry: Entry) -> list[str]:
    """Which tensors are coded how."""
    tensors, method = entry.quantize.get("tensors") or [], entry.quantize.get("method", "")
    if not tensors:
        return []

    def form(row: dict[str, Any]) -> str:
        return f"{method} (int{row['bits']})" if row.get("bits") else f"{method} ({row.get('scheme', 'float')})"

    rows = sorted(tensors, key=form)
    lines = [f"  {kind}: {', '.join(row['name'] for row in some)}" for kind, some in groupby(rows, key=form)]
    return ["Quantized weights:", *lines]


def seed_log(entry: Entry, size: Size, config: RunConfig, code_sha256: str) -> bytes:
    """The training log with quantization, sizes and scores after it; the last metric is the claimed one."""
    text = (
        read_bytes(entry.log, MAX_LOG).decode(errors="replace")
        if entry.log
        else "no training log was found beside the artifact\n"
    )
    score, artifact = entry.score["score"], entry.artifact.stat().st_size
    codec, total = name_of("Codec", type(config.compress)), artifact + size.code_bytes
    name, seconds = entry.score["method"]["name"], entry.score["seconds"]
    raw = [f"Serialized model: {4 * entry.train['parameters']} bytes"] if entry.train.get("parameters") else []
    hessians = calibration_seconds(entry)
    read_s = training_seconds(entry, config)
    read = [f"train_data_last_read: {read_s:.1f}s"] if read_s is not None else []
    collected = [f"GPTQ:collected Hessians in {hessians:.1f}s"] if hessians else []
    lines = [
        f"seed:{entry.seed}",
        *diagnostic(entry, "float", "diagnostic pre-quantization"),
        *raw,
        f"Code size: {size.code_bytes} bytes",
        *collected,
        *read,
        *quantized_weights(entry),
        f"Serialized model quantized+{codec}: {artifact} bytes",
        f"Total submission size quantized+{codec}: {total} bytes",
        f"artifact: code={size.code_bytes} model={artifact} total={total} cap={size.cap_bytes} "
        f"margin={size.cap_bytes - total:+d}",
        f"sha256 model={entry.score['model']['sha256']} code={code_sha256}",
        f"val_tokens: {score['tokens']}",
        f"bytes_per_token:{score['bytes'] / score['tokens']:.6f}",
        *diagnostic(entry, "quantized", "diagnostic quantized"),
        metric(METRICS.get(name, f"quantized_{name}"), score, seconds["score"]),
        f"total_eval_time:{seconds.get('total', seconds['score']):.1f}s",
    ]
    return (text + "\n".join(lines) + "\n").encode()
