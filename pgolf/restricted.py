"""Foreign torch files, unpickled by a process of its own that may make nothing but tensors and plain containers.

The process reads with weights_only, has no more memory than the largest file may need, and leaves what it found as a
safetensors file, which this process reads instead. Nothing else of pgolf unpickles.
"""

import contextlib
import io
import json
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pgolf.core.errors import InputError, PgolfError, SetupError
from pgolf.core.files import parse_json, read_bytes, read_json, write_bytes, write_json

MAX_FOREIGN = 2 << 30
"""Bytes of a foreign file, of what a .ptz holds, and of all tensors together."""
SECONDS = 600
MAX_DEPTH = 4
FIX = "the file is damaged or hostile; only plain tensors can be imported"
TENSORS, SHAPE, PROBLEM = "tensors.safetensors", "shape.json", "error.json"


def read_torch(path: Path) -> Any:
    """A torch file's dicts and tensors (other objects are None), or those of one in a zlib stream (.ptz). InputError
    if the restricted reader refuses it, SetupError on a torch before 2.10, whose reader has a known hole.
    """
    import torch

    if not torch_is_safe():
        raise SetupError(
            f"torch {torch.__version__} cannot read foreign .pt files safely",
            str(path),
            "import with torch 2.10 or later, or convert the file to .safetensors",
        )
    code = f"import sys; sys.path[:] = {sys.path!r}; from pgolf.restricted import main; main(*sys.argv[1:])"
    with TemporaryDirectory(prefix="pgolf-import-") as name:
        room = Path(name)
        try:
            done = subprocess.run(
                [sys.executable, "-c", code, str(path), name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"the file could not be read within {SECONDS} s", str(path), FIX) from None
        if (room / PROBLEM).is_file():
            problem = read_json(room / PROBLEM)
            raise InputError(str(problem["what"]), str(path), str(problem["fix"]))
        if done.returncode or not (room / SHAPE).is_file():
            raise InputError(f"the process that read the file ended with code {done.returncode}", str(path), FIX)
        return read_found(room)


def torch_is_safe() -> bool:
    """Whether this torch's weights_only reader has no known hole (CVE-2026-24747 was closed in 2.10)."""
    import torch

    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return (major, minor) >= (2, 10)


def read_found(room: Path) -> Any:
    """What the process left."""
    from safetensors.torch import load

    tensors = load(read_bytes(room / TENSORS, MAX_FOREIGN + (64 << 20)))

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: filled(part) for name, part in node.items()}
        return tensors[node] if isinstance(node, str) else None

    return filled(parse_json(read_bytes(room / SHAPE, 64 << 20), str(room / SHAPE)))


def inflate(blob: bytes) -> bytes:
    """Contents of a zlib stream, at most 2 GiB."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(blob, MAX_FOREIGN)
    except zlib.error as error:
        raise InputError(f"not a zlib stream: {error}", fix="a .ptz file is zlib over a torch file") from None
    if not stream.eof:
        raise InputError("the zlib stream is cut off, or holds more than 2 GiB")
    return raw


def unpickled(blob: bytes) -> Any:
    """A torch file's objects; only tensors and plain containers are ever made."""
    import torch

    try:
        return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except MemoryError:
        raise InputError("the file asks for more memory than its tensors may take", fix=FIX) from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else "unreadable"
        raise InputError(
            f"torch's restricted reader refuses the file: {reason}", fix="only plain tensors can be imported"
        ) from None


def gathered(found: Any) -> tuple[Any, dict[str, Any]]:
    """The shape of nested dicts, with a number for each tensor and null for all else, and the tensors by number.

    InputError for a tensor that is larger than what the file stores of it.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    total = 0

    def visit(node: Any, name: str, depth: int) -> Any:
        nonlocal total
        if isinstance(node, dict):
            if depth > MAX_DEPTH:
                raise InputError("dicts lie in dicts deeper than in any state dict", fix=FIX)
            return {str(key): visit(part, str(key), depth + 1) for key, part in node.items()}
        if not isinstance(node, torch.Tensor):
            return None
        dense = node.layout == torch.strided and node.device.type == "cpu" and not node.is_quantized
        size = node.numel() * node.element_size()
        if not dense or size > node.untyped_storage().nbytes():
            raise InputError(f"{name} is not a plain tensor with a value of its own in every place", fix=FIX)
        total += size
        if total > MAX_FOREIGN:
            raise InputError(f"the tensors take more than {MAX_FOREIGN:,} bytes", fix=FIX)
        tensors[str(len(tensors))] = node.detach().clone().contiguous()
        return str(len(tensors) - 1)

    return visit(found, "the object", 0), tensors


def bound_memory(most: int) -> None:
    """Let this process have `most` bytes of addresses beyond what it has, where the system can say and do that."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + most
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(name: str, folder: str) -> None:
    """The process: read `name`, leave in `folder` what it holds, or why it cannot be read."""
    from safetensors.torch import save

    path, room = Path(name), Path(folder)
    try:
        bound_memory(6 * MAX_FOREIGN)
        blob = read_bytes(path, MAX_FOREIGN)
        shape, tensors = gathered(unpickled(inflate(blob) if path.suffix == ".ptz" else blob))
        try:
            content = save(tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"a tensor of a kind that is not imported: {error}", fix=FIX) from None
        write_bytes(room / TENSORS, content)
        write_bytes(room / SHAPE, json.dumps(shape).encode())
    except PgolfError as error:
        write_json(room / PROBLEM, {"what": error.what, "fix": error.fix})
