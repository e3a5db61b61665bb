"""Where cells run: in processes of this machine, one per place, or through submitit on a cluster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from pgolf.core.errors import ConfigError, SetupError
from pgolf.core.files import make_dir, open_log, parse_json, read_bytes, storage_error, write_json
from pgolf.sweep.cell import Result, failed, run_cell

STOP_S = 60
"""How long a cell that was told to stop may take; training writes a checkpoint first."""


class Running(Protocol):
    """A cell under way."""

    def result(self) -> Result | None:
        """Its result, None while there is none yet."""

    def stop(self) -> None:
        """Tell it to end."""

    def join(self, wait_s: float) -> None:
        """Wait for its end, and make sure of it."""


class Workers(Protocol):
    """A place for cells to run."""

    @property
    def slots(self) -> int:
        """How many cells may run at once."""

    def start(self, task: dict[str, Any]) -> Running:
        """Run a cell."""


class Process:
    """A cell in a child process away from the terminal: a Ctrl-C reaches it through the sweep, once."""

    def __init__(self, task: dict[str, Any], visible_gpu: str, freed: "list[str]") -> None:
        folder = Path(task["folder"])
        self.result_file, self.log = folder / "result.json", folder / "log.txt"
        self.freed, self.place = freed, visible_gpu
        make_dir(folder)
        self.result_file.unlink(missing_ok=True)
        write_json(folder / "task.json", task)
        code = f"import sys; sys.path[:] = {sys.path!r}; from pgolf.sweep.cell import main; main(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(folder / "task.json"), str(self.result_file)]
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": visible_gpu} if visible_gpu else {})
        try:
            with open_log(self.log, append=True) as log:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
                )
        except OSError as error:
            raise storage_error(error, self.log, "starting a process in") from None

    def result(self) -> Result | None:
        """What the process left, or how it ended."""
        code = self.process.poll()
        if code is None:
            return None
        self.close()
        if self.result_file.is_file():
            return dict(parse_json(read_bytes(self.result_file, 64 << 20), str(self.result_file)))
        how = f"by signal {-code} (9 is what a machine out of memory sends)" if code < 0 else f"with code {code}"
        return failed(1, "PgolfError", f"the process of the cell ended {how}", str(self.log), "see there")

    def stop(self) -> None:
        """SIGTERM."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def join(self, wait_s: float) -> None:
        """Wait, then kill."""
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.close()

    def close(self) -> None:
        """Give back the pipe and the place."""
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()
            self.freed.append(self.place)


class LocalWorkers:
    """Processes on this machine: on a CPU `jobs` at a time with the cores shared out, on GPUs one per GPU."""

    def __init__(self, device: str, jobs: int, threads: int, gpus: list[str]) -> None:
        self.device, self.slots, self.threads = device, jobs, threads
        self.free = [gpus[place % len(gpus)] if gpus else "" for place in range(jobs)]

    def start(self, task: dict[str, Any]) -> Running:
        """A child process in the first free place."""
        place = self.free.pop(0)
        try:
            return Process(task | {"device": self.device, "threads": self.threads}, place, self.free)
        except BaseException:
            self.free.append(place)
            raise


def local_workers(sweep: str, device_name: str, jobs: int, cells: int) -> LocalWorkers:
    """Processes for a device as named on the command line. `jobs` 0: one per GPU; without GPU one after the other for
    training, else one per core. ConfigError or SetupError for a device that is not there.
    """
    import torch

    from pgolf.core.dist import pick_device
    from pgolf.corpus.workers import available_cores

    if pick_device(device_name, 0).type == "cuda":
        gpus = visible_gpus(torch.cuda.device_count())
        _, _, number = device_name.partition(":")
        gpus = [gpus[int(number)]] if number else gpus
        return LocalWorkers("cuda", min(jobs or len(gpus), cells), 0, gpus)
    jobs = min(jobs or (1 if sweep == "train" else available_cores()), cells)
    return LocalWorkers("cpu", jobs, max(1, min(torch.get_num_threads(), available_cores() // jobs)), [])


def visible_gpus(count: int) -> list[str]:
    """Names of the GPUs this process sees, as CUDA_VISIBLE_DEVICES has them."""
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return given[:count] if given else [str(index) for index in range(count)]


class ClusterJob:
    """A cell as a job of submitit."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def result(self) -> Result | None:
        """What the job returned, or how it failed."""
        if not self.job.done():
            return None
        try:
            return dict(self.job.result())
        except Exception as error:
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            return failed(1, "PgolfError", f"the job failed: {last}", str(self.job.paths.stderr), "see there")

    def stop(self) -> None:
        """Cancel it."""
        self.job.cancel(check=False)

    def join(self, wait_s: float) -> None:
        """Wait until it is gone."""
        until = time.monotonic() + wait_s
        while not self.job.done() and time.monotonic() < until:
            time.sleep(0.2)


class ClusterWorkers:
    """Jobs through submitit, all at once unless `jobs` says how many; the cluster queues them."""

    def __init__(self, executor: Any, device: str, jobs: int) -> None:
        self.executor, self.device, self.slots = executor, device, jobs

    def start(self, task: dict[str, Any]) -> Running:
        """Submit a job."""
        make_dir(Path(task["folder"]))
        return ClusterJob(self.executor.submit(run_cell, task | {"device": self.device, "threads": 0}))


def cluster_workers(cluster: str, settings: list[str], folder: Path, device: str, jobs: int) -> ClusterWorkers:
    """Jobs on `slurm`, or `local` to try it; `settings` are submitit's, as key=value. ConfigError for a setting it does
    not take, SetupError without submitit or cluster.
    """
    if cluster not in ("slurm", "local"):
        raise ConfigError(f"{cluster!r} is neither slurm nor local", "--cluster")
    given = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{text!r} is not of the form key=value", "--cluster-set")
        given[key] = int(value) if value.isdecimal() else value
    try:
        import submitit
    except ImportError:
        fix = "pip install 'pgolf[slurm]'"
        raise SetupError("running cells as jobs needs submitit, which is not installed", "--cluster", fix) from None
    try:
        executor = submitit.AutoExecutor(folder=str(folder / "%j"), cluster=cluster)
    except RuntimeError as error:
        raise SetupError(
            f"submitit cannot use {cluster}: {error}", "--cluster", "use it where jobs can be sent"
        ) from None
    try:
        executor.update_parameters(name="pgolf", **given)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        what = f"submitit does not take that: {str(error).splitlines()[0]}"
        raise ConfigError(what, "--cluster-set", "for example timeout_min=60, gpus_per_node=1") from None
    return ClusterWorkers(executor, device, jobs)
