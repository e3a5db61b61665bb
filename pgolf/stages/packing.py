"""A quantized model as the bytes that count, whatever the method of compression."""

from collections.abc import Mapping

from pgolf.bundle.script import build_script, counted
from pgolf.config.run import RunConfig
from pgolf.core.artifact import encode_artifact
from pgolf.core.codecs.base import Codec
from pgolf.core.quant.qtensor import QuantizedModel
from pgolf.layouts.methods import Layouts, all_codecs, arranged_artifact

CODE_SECTIONS = ("model", "compress", "eval", "ttt", "optim", "train", "quant", "package")
"""Sections that decide the bytes of artifact and script."""


def encoded(model: QuantizedModel, codec: Codec, info: bytes) -> tuple[bytes, Mapping[int, Codec]]:
    """The artifact by one codec for all sections, or by one that arranges each as suits it; and what reads it."""
    if isinstance(codec, Layouts):
        return arranged_artifact(model, codec, info), all_codecs(programs=True)
    return encode_artifact(model, codec, info), {codec.codec_id: codec}


def script_bytes(config: RunConfig, info: bytes) -> int:
    """Bytes of the script that ships beside the artifact."""
    return len(build_script(counted(config), info.decode()).packed)
