"""Small inputs that want to become large ones: what each codec makes of them, and how much memory that takes."""

import json
import lzma
import os
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import brotli

from benchmarks.faults.damage import GOLDEN
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.stages import Bench
from benchmarks.fuzz_artifacts import parts, signed
from pgolf.catalog import load
from pgolf.core.artifact import decode_artifact
from pgolf.core.errors import InputError, PgolfError
from pgolf.layouts.methods import all_codecs
from pgolf.stages.model_files import load_artifact

ARTIFACT = GOLDEN / "model.pgz"
UNIT = 16 << 20
DECLARED = 1000
"""Bytes that the table of sections says a bomb holds."""
ALLOWED = 16 << 20
"""Peak memory beyond what the process had, which decoders' windows need."""


def zlib_bomb(units: int) -> bytes:
    """A flushed deflate block repeated, with the right Adler-32."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = stream.compress(bytes(UNIT)) + stream.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + block * units + b"\x03\x00" + struct.pack(">I", (units * UNIT % 65521) << 16 | 1)


def lzma_bomb(units: int) -> bytes:
    """LZMA2 chunks repeated, each of which resets the dictionary; one end marker."""
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 16}]
    chunk = lzma.compress(bytes(UNIT), lzma.FORMAT_RAW, filters=chain)
    assert chunk[-1] == 0
    return b"\x10" + chunk[:-1] * units + b"\0"


def brotli_bomb(units: int) -> bytes:
    """A flushed piece, then the same continuation repeated."""
    stream = brotli.Compressor(quality=5, lgwin=16)
    first, more = (stream.process(bytes(UNIT)) + stream.flush() for _ in range(2))
    return bytes(first + more * (units - 1) + stream.finish())


def zstd_bomb(units: int) -> bytes:
    """A frame that states 1,000 bytes and holds run-length blocks of 128 KiB."""
    blocks = units * UNIT >> 17
    block = struct.pack("<I", (1 << 17) << 3 | 1 << 1)[:3] + b"\0"
    last = struct.pack("<I", (1 << 17) << 3 | 1 << 1 | 1)[:3] + b"\0"
    return b"\x28\xb5\x2f\xfd" + bytes([0x40, 0x58]) + struct.pack("<H", 1000 - 256) + block * (blocks - 1) + last


def honest_zstd(units: int) -> bytes:
    """The same in a frame that states what it holds, which the library would allocate at once."""
    frame = zstd_bomb(units)
    return frame[:4] + bytes([0xC0, 0x58]) + struct.pack("<Q", units * UNIT) + frame[8:]


BOMBS: dict[str, Callable[[int], bytes]] = {
    "zlib": zlib_bomb,
    "lzma": lzma_bomb,
    "brotli": brotli_bomb,
    "zstd": zstd_bomb,
}


def nested(units: int) -> bytes:
    """A zlib bomb in zlib: the inner one is what the section holds."""
    return zlib.compress(zlib_bomb(units))


def peak() -> int:
    """The most memory this process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def measured(action: Callable[[], object]) -> tuple[str, int]:
    """How an action ends in a process of its own, and the memory it takes beyond what there was."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        before = peak()
        try:
            action()
            how = "taken"
        except InputError:
            how = "refused"
        except PgolfError:
            how = "another error"
        except BaseException as error:
            how = f"crashed: {error}"
        os.write(writer, json.dumps([how, peak() - before]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read()
    os.waitpid(pid, 0)
    how, most = json.loads(text) if text else ("ended without a word", 0)
    return str(how), int(most)


def in_artifact(codec: int, body: bytes, declared: int) -> bytes:
    """An artifact one of whose sections is by this codec, holds `body`, and is said to hold so many bytes."""
    prelude, table, bodies = parts(ARTIFACT.read_bytes())
    table[-1][1], table[-1][3], bodies[-1] = codec, declared, bytearray(body)
    return signed(prelude, table, bodies)


def explode(bench: Bench, units: int) -> Outcome:
    """Bombs of `units` times 16 MiB of zeros for every codec, declared as 1,000 bytes: alone, in an artifact, in one
    another; frames of zstd that state their true size; sections that declare more than any may hold.
    """
    outcome, most = Outcome(), 0
    config = load_artifact(ARTIFACT).config.model

    def judge(name: str, action: Callable[[], object], size: int) -> None:
        nonlocal most
        how, used = measured(action)
        outcome.rounds += 1
        most = max(most, used)
        if how != "refused" or used > ALLOWED:
            outcome.bad.append(f"{name}, {size:,} bytes: {how}, {used >> 20} MiB")

    for name, make in {**BOMBS, "zstd, honest": honest_zstd, "zlib, nested": nested}.items():
        codec, body = load("Codec", name.partition(",")[0])(), make(units)
        codec.decode(codec.encode(b"warm up"), 7)
        judge(name, partial(codec.decode, body, DECLARED), len(body))
        for declared in (DECLARED, 1 << 30):
            bomb = in_artifact(codec.codec_id, body, declared)
            action = partial(decode_artifact, bomb, config, dict(all_codecs()))
            judge(f"{name}, in an artifact, declared as {declared:,}", action, len(bomb))
    rans = load("Codec", "rans")()
    lie = bytearray(rans.encode(bytes(1 << 16), [(256, 256)]))
    lie[3:11] = struct.pack("<II", 1 << 31, 1 << 31)
    judge("rans, a matrix of 2^62 codes", partial(rans.decode, bytes(lie), 1 << 16), len(lie))
    return outcome.saying(f"{units * UNIT:,} bytes each; at most {most / 2**20:.1f} MiB more than before")
