"""compress: codes in, the artifact out, its size counted with the code that will ship beside it."""

import time
from pathlib import Path
from typing import Any

from pgolf.accounting import size_on_disk
from pgolf.bundle.script import ships
from pgolf.catalog import name_of
from pgolf.config.load import Resolved
from pgolf.core.artifact import decode_artifact
from pgolf.core.errors import InputError, PgolfError
from pgolf.core.files import read_bytes, write_bytes
from pgolf.core.quant.free_order import by_steps
from pgolf.report.console import Console
from pgolf.stages.manifest import fresh_entry, guarded, record, stage_key
from pgolf.stages.model_files import MAX_ARTIFACT, artifact_info, load_model
from pgolf.stages.packing import encoded, script_bytes
from pgolf.stages.quantize import rounded


def compress(source: Path, out: Path, resolved: Resolved, console: Console, force: bool = False) -> dict[str, Any]:
    """Write the artifact of a quantized model; figures hold exact sizes with the code of the same configuration."""
    start = time.monotonic()
    model = load_model(source)
    if model.quantized is None or model.kind != "quantized":
        raise InputError(f"a {model.kind} cannot be compressed", str(source), "give the output of pgolf quantize")
    config, codec = resolved.config, resolved.config.compress
    values = resolved.values
    section = {name: values[name] for name in ("compress", "eval", "ttt", "optim", "train", "quant", "package")}
    inputs = {"quantized": model.sha256}
    key = stage_key("compress", section, inputs)
    with guarded(out):
        if not force and (entry := fresh_entry(out, key)):
            return entry | {"fresh": True}
        console.line(f"compress: {name_of('Codec', type(codec))}")
        info = artifact_info(config, model.tokenizer_sha256, model.config.model)
        blob, codecs = encoded(model.quantized, codec, info)
        write_bytes(out, blob)
        back = decode_artifact(read_bytes(out, MAX_ARTIFACT), model.config.model, codecs, str(out))
        if back.digest() != by_steps(model.quantized, codec).digest():
            raise PgolfError("the artifact does not decode to what was encoded", str(out), "please report this")
        size = size_on_disk([out], script_bytes(config, info), config.package.cap_bytes)
        figures = {"method": name_of("Codec", type(codec)), **size.document(), "weights_sha256": back.digest()}
        console.line(f"compress: {size.line()}")
        if not ships(config):
            console.warn(f"no script carries compress.method={figures['method']}; the code is counted as with brotli")
        if size.headroom_bytes < 0:
            console.warn(
                f"the submission would be {-size.headroom_bytes:,} bytes over the cap: "
                "lower quant.bits, raise quant.k, or compress with brotli"
            )
        entry = record(out, "compress", key, values, inputs, figures, rounded({"total": time.monotonic() - start}))
    return entry | {"fresh": False}
