"""Files that are damaged: bits flipped, cut off, or changed with a checksum that fits again."""

import copy
import hashlib
import io
import json
import os
import random
import shutil
import signal
import string
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.stages import Bench
from benchmarks.faults.victims import Hang
from pgolf.config.load import preset_path, resolve
from pgolf.core.artifact import PRELUDE, SECTION
from pgolf.core.bpb import byte_table, load_tokenizer
from pgolf.core.errors import ConfigError, InputError, PgolfError
from pgolf.core.shards import HEADER_BYTES, load_split
from pgolf.core.tensorfile import load_tensors, save_tensors
from pgolf.corpus.tokenizer import TRIAL
from pgolf.dataset import check_unused, open_dataset
from pgolf.stages.calibrate import read_calibration
from pgolf.stages.checkpoints import RESUME_SCHEMA
from pgolf.stages.eval_partial import LEDGER_SCHEMA
from pgolf.stages.manifest import fresh_entry, read_entries
from pgolf.stages.model_files import load_artifact, load_checkpoint, load_quantized

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "formats_v1"
LIMIT_S = 20
"""Reading one damaged file takes no longer."""


@dataclass(frozen=True)
class Subject:
    """A kind of file, a good one of it, and how it is read: `read` raises what its readers raise."""

    name: str
    path: Path
    read: Callable[[Path], Any]
    head: int
    """Bytes of its header."""
    fields: tuple[int, ...]
    """Where its fields begin."""


def tensor_fields(path: Path) -> tuple[int, tuple[int, ...]]:
    """Bytes of the header of a tensor file, and where header and tensors begin."""
    blob = path.read_bytes()
    head = 8 + struct.unpack_from("<Q", blob)[0]
    header = json.loads(blob[8:head])
    starts = {head + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
    return head, (0, 1, 7, 8, 9, head - 1, *sorted(starts))


def artifact_fields(path: Path) -> tuple[int, tuple[int, ...]]:
    """Bytes of an artifact's header, and where its entries and bodies begin."""
    blob = path.read_bytes()
    count = PRELUDE.unpack_from(blob)[3]
    head, bodies = 16 + SECTION.size * count, []
    for index in range(count):
        bodies.append(head + sum(SECTION.unpack_from(blob, 16 + SECTION.size * i)[2] for i in range(index)))
    return head, (0, 3, 4, 5, 6, 8, 12, *range(16, head, SECTION.size), *bodies)


def subjects(bench: Bench) -> list[Subject]:
    """Every format with a hash or a checksum, in a folder of its own, and a shard without."""
    room = bench.room / "damage"
    shutil.copytree(GOLDEN, room)
    shutil.copy(bench.run / "quantize" / "hessians.safetensors", room / "calibration.safetensors")
    shutil.copytree(bench.run / "data", room / "dataset")
    save_tensors(room / "score.json.ledger", {"losses": torch.arange(500.0)}, {"schema": LEDGER_SCHEMA, "key": "k"})
    (room / "bare").mkdir()
    shutil.copy(room / "data" / "fineweb_val_000000.bin", room / "bare" / "fineweb_val_000000.bin")
    vocab = open_dataset(room / "data").vocab_size

    def schema(name: str) -> Callable[[Path], Any]:
        return lambda path: load_tensors(path, name)

    def dataset(path: Path) -> Any:
        found = open_dataset(path.parent)
        found.verify()
        return found

    def shard(path: Path) -> Any:
        check_unused(path)
        return load_split([path], vocab)

    found = [
        Subject(name, path, read, *tensor_fields(path))
        for name, path, read in (
            ("checkpoint", room / "checkpoint.safetensors", load_checkpoint),
            ("resume file", room / "resume.safetensors", schema(RESUME_SCHEMA)),
            ("quantized model", room / "quantized.safetensors", load_quantized),
            ("calibration", room / "calibration.safetensors", read_calibration),
            ("ledger", room / "score.json.ledger", schema(LEDGER_SCHEMA)),
        )
    ]
    artifact, shards = room / "model.pgz", (0, 4, 8, 12, HEADER_BYTES, HEADER_BYTES + 2)
    found.append(Subject("artifact", artifact, load_artifact, *artifact_fields(artifact)))
    listed = "shard with manifest", room / "data" / "fineweb_val_000000.bin", dataset
    found.append(Subject(*listed, HEADER_BYTES, shards))
    found.append(Subject("shard alone", room / "bare" / "fineweb_val_000000.bin", shard, HEADER_BYTES, shards))
    found.append(Subject("document list", room / "dataset" / "documents_train.npy", dataset, 128, (0, 6, 8, 10, 128)))
    found.append(Subject("tokenizer of a dataset", room / "data" / "tokenizer.model", dataset, 0, (0, 1)))
    return found


def alarmed(number: int, frame: FrameType | None) -> None:
    """The handler of the alarm."""
    raise Hang(f"a file took longer than {LIMIT_S} s")


def ending(read: Callable[[Path], Any], path: Path) -> tuple[str, Any]:
    """How reading ends (read, refused, crashed or hung), and what came of it."""
    signal.signal(signal.SIGALRM, alarmed)
    signal.alarm(LIMIT_S)
    try:
        return "read", read(path)
    except PgolfError as error:
        good = isinstance(error, InputError | ConfigError) and "\n" not in str(error)
        return ("refused" if good else "crashed"), error
    except Hang as hang:
        return "hung", hang
    except Exception as error:
        return "crashed", "".join(traceback.format_exception(error)[-3:])
    finally:
        signal.alarm(0)


def spread(total: int, most: int) -> Iterator[int]:
    """The numbers below `total`, or `most` of them evenly spread."""
    yield from range(total) if total <= most else (index * total // most for index in range(most))


def flip(bench: Bench, rounds: int) -> Outcome:
    """Bits of every format: all of the header (or 4 `rounds` of them), and `rounds` random ones of what follows. Each
    must be refused; of a shard without manifest, what follows the header has nothing that could tell.
    """
    outcome, draw, counts = Outcome(), random.Random(rounds), Counter[str]()
    for subject in subjects(bench):
        size = subject.path.stat().st_size
        assert ending(subject.read, subject.path)[0] == "read", subject.name
        heads = list(spread(8 * subject.head, 1 << 40 if rounds >= 10_000 else 4 * rounds))
        bits = heads + [draw.randrange(8 * subject.head, 8 * size) for _ in range(rounds)]
        silent = 0
        with open(subject.path, "r+b", buffering=0) as file:
            for bit in bits:
                byte = at(file, bit // 8)
                put(file, bit // 8, byte ^ (1 << bit % 8))
                how, what = ending(subject.read, subject.path)
                put(file, bit // 8, byte)
                expected = subject.name == "shard alone" and bit >= 8 * subject.head
                if how != "refused" and not (expected and how == "read"):
                    outcome.bad.append(f"{subject.name}, bit {bit}: {how}: {str(what)[-300:]}")
                silent += how == "read"
        outcome.rounds += len(bits)
        counts[subject.name] = len(heads)
        if silent:
            counts[f"{subject.name}, unseen in ids"] = silent
    shutil.rmtree(bench.room / "damage")
    return outcome.saying("bits of headers: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))


def at(file: Any, place: int) -> int:
    """A byte of a file."""
    file.seek(place)
    return int(file.read(1)[0])


def put(file: Any, place: int, byte: int) -> None:
    """Set a byte of a file."""
    file.seek(place)
    file.write(bytes([byte]))


def truncate(bench: Bench, most: int) -> Outcome:
    """Every format cut off at each kilobyte and each field (or at `most` places)."""
    outcome, counts = Outcome(), Counter[str]()
    for subject in subjects(bench):
        whole = subject.path.read_bytes()
        sizes = sorted({*range(0, len(whole), 1024), *subject.fields, len(whole) - 2, len(whole) - 1}, reverse=True)
        places = [sizes[index] for index in spread(len(sizes), most)]
        for size in places:
            subject.path.write_bytes(whole[:size])
            how, what = ending(subject.read, subject.path)
            if how != "refused":
                outcome.bad.append(f"{subject.name}, cut at {size}: {how}: {str(what)[-300:]}")
        subject.path.write_bytes(whole)
        outcome.rounds += len(places)
        counts[subject.name] = len(places)
    shutil.rmtree(bench.room / "damage")
    return outcome.saying("places: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))


NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, -(1 << 63), 10**40, 0.5, -1e308),
    *("", "x", "nan", "1", "\0", "../../etc/passwd", "/etc/passwd", "x" * 5000, "ü\u2028", "pgolf.checkpoint/99"),
    *([], {}, [[]], [None], {"": {}}, [1, 2, 3], ["a"], {"kind": "none"}, {"kind": 5}, {"kind": "os.system"}),
)  # fmt: skip
"""Values that a document has in the wrong place."""


def paths(node: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a document."""
    yield here
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, part in items:
        yield from paths(part, (*here, key))


def changed(document: Any, draw: random.Random) -> Any:
    """A document with one to three values removed, replaced, doubled or swapped."""
    document = json.loads(json.dumps(document))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        ways = [way for way in paths(document) if way]
        if not ways:
            return draw.choice(NASTY)
        *way, last = draw.choice(ways)
        node = document
        for key in way:
            node = node[key]
        kind = draw.randrange(6)
        if kind == 0:
            del node[last]
        elif kind == 1 and isinstance(node, dict):
            node[draw.choice(("x", "", str(last) + "s", "__metadata__"))] = node.pop(last)
        elif kind == 2 and isinstance(node[last], int) and not isinstance(node[last], bool):
            node[last] += draw.choice((-1, 1, 1 << 20, -(1 << 20)))
        else:
            node[last] = copy.deepcopy(draw.choice(NASTY))
    return document


def garbled(text: str, draw: random.Random) -> bytes:
    """A text with characters replaced, removed or doubled, or with what JSON and TOML refuse."""
    content = bytearray(text.encode())
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(len(content) + 1)
        end = min(place + draw.randint(1, 30), len(content))
        kind = draw.randrange(5)
        if kind == 0:
            content[place:end] = draw.choice(
                (b"", b"\xff", b"\0", b"NaN", b"[" * 30_000, b'"', b"}", b"=", b"\n", b"1e999")
            )
        elif kind == 1:
            content[place:place] = content[place:end]
        elif kind == 2:
            del content[place:end]
        elif kind == 3 and place < len(content):
            content[place] = draw.randrange(256)
        else:
            del content[draw.randrange(len(content) + 1) :]
    return bytes(content)


def signed(blob: bytes) -> bytes:
    """A tensor file whose hash fits, if it has a place for one."""
    place = blob.find(b"sha256")
    start = blob.find(b'\\"', place + 9) + 2 if place >= 0 else -1
    if place < 0 or start + 64 > len(blob):
        return blob
    blank = blob[:start] + b"0" * 64 + blob[start + 64 :]
    return blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[start + 64 :]


def mutant_tensors(whole: bytes, draw: random.Random) -> bytes:
    """A tensor file with another header, other metadata or other values, signed again."""
    head = 8 + struct.unpack_from("<Q", whole)[0]
    header, body = json.loads(whole[8:head]), bytearray(whole[head:])
    kind = draw.randrange(5)
    if kind == 0:
        meta = header.pop("__metadata__")
        header = changed(header, draw)
        if isinstance(header, dict):
            header["__metadata__"] = meta
    elif kind <= 2:
        meta = json.loads(header["__metadata__"]["pgolf"])
        digest = meta.pop("sha256")
        meta = changed(meta, draw)
        header["__metadata__"]["pgolf"] = json.dumps({"sha256": digest, **meta} if isinstance(meta, dict) else meta)
    elif kind == 3:
        for _ in range(draw.choice((1, 4))):
            place = draw.randrange(len(body))
            body[place : place + 4] = draw.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\xff", b"\0\x7c"))
    text = json.dumps(header).encode()
    if kind == 4:
        text = garbled(text.decode(), draw)
    length = draw.choice((*4 * (len(text),), 1 << 63, (1 << 64) - 1, 1 << 32, len(text) + 1, 0))
    return signed(struct.pack("<Q", length) + text + bytes(body))


def mutant_shard(whole: bytes, draw: random.Random) -> bytes:
    """A shard with another header or other ids."""
    blob = bytearray(whole)
    if draw.random() < 0.7:
        place = 4 * draw.choice((0, 1, 2, 2, 3, draw.randrange(256)))
        blob[place : place + 4] = struct.pack(
            "<i", draw.choice((-1, 0, 1, 2, 7, 1 << 30, -(1 << 31), draw.randrange(5000)))
        )
    else:
        place = HEADER_BYTES + 2 * draw.randrange((len(blob) - HEADER_BYTES) // 2)
        blob[place : place + 2] = struct.pack("<H", draw.choice((0, 1, 65535, 512, draw.randrange(65536))))
    if draw.random() < 0.2:
        del blob[draw.randrange(len(blob)) :]
    return bytes(blob)


LITERALS = (
    *("-1", "0", "1_000_000_000_000", "9" * 400, "1e400", "nan", "inf", "0.5", "true", '""', '"none"', '"banana"'),
    *("{}", "[1, 2]", '{ kind = "none" }', '{ kind = 5 }', "{ lr = -1.0 }", "1979-05-27", '"../x.toml"', "[" * 5000),
)  # fmt: skip
"""Values in TOML."""


def mutant_toml(text: str, draw: random.Random) -> bytes:
    """A configuration with another value for one of its keys, or garbled."""
    if draw.random() < 0.3:
        return garbled(text, draw)
    lines = text.split("\n")
    for _ in range(draw.choice((1, 1, 2))):
        place = draw.choice([index for index, line in enumerate(lines) if " = " in line])
        key = lines[place].partition(" = ")[0]
        lines[place] = f"{draw.choice((key, key, key, key + 's', 'extends'))} = {draw.choice(LITERALS)}"
    return "\n".join(lines).encode()


def mutants(bench: Bench, rounds: int) -> Outcome:
    """`rounds` each of tensor files of every kind, shards, manifests and configurations, changed and signed again: what
    is refused is refused in one line with exit code 3 (or 2), and what is read gives a file of the right form.
    """
    outcome, draw, counts = Outcome(), random.Random(rounds), dict[str, Counter[str]]()
    kinds = {subject.name: subject for subject in subjects(bench)}
    room, slowest = bench.room / "damage", 0.0
    tensors = [kinds[name] for name in ("checkpoint", "resume file", "quantized model", "calibration", "ledger")]
    alone, manifest = kinds["shard alone"], room / "data" / "manifest.json"
    configuration = json.dumps(json.loads((GOLDEN / "manifest.json").read_text()))

    def outputs(path: Path) -> Any:
        return [fresh_entry(path.parent / name, "key") for name in read_entries(path.parent)]

    def dataset(path: Path) -> Any:
        found = open_dataset(path.parent)
        found.verify()
        return found.validation(), found.byte_table(), found.fingerprint("train", "val")

    text = preset_path("demo").read_text()

    def one(kind: str, number: int) -> tuple[Path, Callable[[Path], Any], bytes, bytes]:
        if kind == "tensor files":
            subject = tensors[number % len(tensors)]
            return subject.path, subject.read, wholes[subject.path], mutant_tensors(wholes[subject.path], draw)
        if kind == "shards":
            return alone.path, alone.read, wholes[alone.path], mutant_shard(wholes[alone.path], draw)
        if kind == "configurations":
            return room / "x.toml", lambda path: resolve(str(path)), b"", mutant_toml(text, draw)
        path, read = ((manifest, dataset), (room / "manifest.json", outputs))[number % 2]
        whole = wholes[manifest].decode() if number % 2 == 0 else configuration
        document = (
            json.dumps(changed(json.loads(whole), draw)).encode() if draw.random() < 0.7 else garbled(whole, draw)
        )
        return path, read, wholes.get(path, b""), document

    wholes = {path: path.read_bytes() for path in (*(s.path for s in tensors), alone.path, manifest)}
    for kind in ("tensor files", "shards", "manifests", "configurations"):
        counts[kind] = Counter()
        for number in range(rounds):
            path, read, whole, content = one(kind, number)
            path.write_bytes(content)
            began = time.perf_counter()
            how, what = ending(read, path)
            slowest = max(slowest, time.perf_counter() - began)
            counts[kind][how] += 1
            if how in ("crashed", "hung"):
                outcome.bad.append(f"{kind}, {path.name}, round {number}: {how}: {str(what)[-600:]}")
            path.write_bytes(whole)
        outcome.rounds += rounds
    shutil.rmtree(room)
    said = "; ".join(f"{kind}: {found['refused']:,} refused, {found['read']:,} read" for kind, found in counts.items())
    return outcome.saying(f"{said}; slowest {slowest:.2f} s")


def mutant_model(whole: bytes, draw: random.Random) -> bytes:
    """A tokenizer's model with bytes replaced, removed, doubled or cut off, most of them where pieces are."""
    content = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if not content:
            break
        place = draw.randrange(len(content)) if draw.random() < 0.3 else draw.randrange(min(len(content), 7000))
        end = min(place + draw.randint(1, 40), len(content))
        kind = draw.randrange(5)
        if kind <= 1:
            content[place] = draw.choice((0, 255, 127, draw.randrange(256)))
        elif kind == 2:
            content[place:place] = content[place:end]
        elif kind == 3:
            del content[place:end]
        elif draw.random() < 0.2:
            del content[max(place, 16) :]
    return bytes(content)


def surviving(content: bytes, action: Callable[[bytes], Any]) -> bool:
    """Whether an action on this content ends without a word in a process of its own, within the limit."""
    pid = os.fork()
    if not pid:
        signal.alarm(LIMIT_S)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        try:
            action(content)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def tried(content: bytes) -> None:
    """What pgolf tries a tokenizer out with before it is loaded, in this process."""
    sys.stdin = io.TextIOWrapper(io.BytesIO(content))
    exec(compile(TRIAL, "trial", "exec"), {})


def loaded(content: bytes) -> None:
    """What the main process does with a tokenizer that passed. InputError is no crash."""
    try:
        processor = load_tokenizer(content, "a mutant")
        byte_table(processor, processor.vocab_size())
        processor.decode(processor.encode(f"The end of {string.printable} \U0001f600 caf\u00e9  x" * 30))
    except InputError:
        return


def tokenizers(bench: Bench, rounds: int) -> Outcome:
    """Damaged SentencePiece models: pgolf's trial in a process of its own must refuse each that would end, hang or
    crash the main process.
    """
    outcome, draw, counts = Outcome(), random.Random(rounds), Counter[str]()
    whole = (GOLDEN / "data" / "tokenizer.model").read_bytes()
    assert surviving(whole, tried) and surviving(whole, loaded)
    for number in range(rounds):
        content = mutant_model(whole, draw)
        outcome.rounds += 1
        if not surviving(content, tried):
            counts["refused"] += 1
        elif surviving(content, loaded):
            counts["usable"] += 1
        else:
            outcome.bad.append(f"tokenizer, round {number}: passes the trial and ends the process that loads it")
    return outcome.saying(f"{counts['refused']:,} refused, {counts['usable']:,} usable or refused by their pieces")
