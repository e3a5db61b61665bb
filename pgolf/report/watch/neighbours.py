"""Other processes on the GPU of a run."""

import os
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pgolf.core.dist import World

Process = dict[str, Any]
"""`pid`, `bytes` of device memory, `name`."""
Probe = Callable[["torch.device"], "list[Process] | None"]
"""Lists the processes on a device, this one included; None if nobody can say."""


def uuid_of(device: "torch.device") -> str:
    """The GPU's identity, which unlike its number does not depend on what is visible."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def ask_nvml(device: "torch.device") -> list[Process] | None:
    """By way of pynvml; None where it is not there or fails."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid_of(device).encode())
            found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            return [{"pid": one.pid, "bytes": int(one.usedGpuMemory or 0), "name": name_of(one.pid)} for one in found]
        finally:
            pynvml.nvmlShutdown()
    except Exception:
        return None


def name_of(pid: int) -> str:
    """A process's command, "" if the system does not say."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def ask_smi(device: "torch.device") -> list[Process] | None:
    """By way of nvidia-smi; None where it is not there or fails."""
    query = ["--query-compute-apps=pid,used_memory,process_name", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--id={uuid_of(device)}", *query], capture_output=True, text=True, timeout=10, check=True
        )
        return parse_smi(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError):
        return None


def parse_smi(text: str) -> list[Process]:
    """Lines of `pid, MiB, name`; memory that is not known is 0. ValueError for anything else."""
    rows = [[cell.strip() for cell in line.split(",", 2)] for line in text.splitlines() if line.strip()]
    if any(len(row) != 3 for row in rows):
        raise ValueError("not the three columns asked for")
    return [
        {"pid": int(pid), "bytes": int(memory) << 20 if memory.isdigit() else 0, "name": name}
        for pid, memory, name in rows
    ]


def ask(device: "torch.device") -> list[Process] | None:
    """The processes on a GPU by whatever can say."""
    found = ask_nvml(device)
    return ask_smi(device) if found is None else found


def strangers(processes: list[Process], own: int, own_bytes: int) -> list[Process]:
    """The processes that are not this one. In a container this process may go by a number it does not know: then the
    one whose memory is nearest to what this process holds is taken for it.
    """
    others = [one for one in processes if one["pid"] != own]
    if len(others) == len(processes) and others:
        others.remove(min(others, key=lambda one: abs(one["bytes"] - own_bytes)))
    return others


def others_on(world: "World", probe: Probe = ask) -> list[Process] | None:
    """Strangers on the GPUs of all ranks, None if nobody can say; none on a CPU. Every rank must call."""
    if world.device.type != "cuda":
        return []
    import torch

    found = probe(world.device)
    own = None if found is None else strangers(found, os.getpid(), torch.cuda.memory_reserved(world.device))
    everyone: list[list[Process] | None] = [own]
    if world.size > 1:
        everyone = [None] * world.size
        torch.distributed.all_gather_object(everyone, own)
    known = [some for some in everyone if some is not None]
    return [one for some in known for one in some] if known else None


def in_words(others: list[Process]) -> str:
    """A list of processes for people."""
    return ", ".join(f"{one['name'] or 'process'} ({one['pid']}, {one['bytes'] >> 20:,} MiB)" for one in others)
