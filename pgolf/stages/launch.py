"""train, or score, on several processes of one machine, which torchrun's own launcher starts and watches.

What is to be done goes to the ranks as a file, and each leaves a report of how it ended. The command's result or its
one line about the rank that failed is made of these reports; torchrun itself stays silent.
"""

import base64
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.config.load import Resolved
from pgolf.config.run import RunConfig
from pgolf.config.tree import Layer, build_config
from pgolf.core import errors
from pgolf.core.errors import ConfigError, PgolfError, SetupError
from pgolf.core.files import open_log, read_bytes, read_json, write_bytes, write_json
from pgolf.dataset import Dataset
from pgolf.report.console import Console
from pgolf.stages.signals import Interrupted, install

if TYPE_CHECKING:
    from pgolf.core.dist import World
    from pgolf.stages.evaluate import Scoring
    from pgolf.stages.model_files import ModelFile

ORDER = "order.json"
PATIENCE_S = 600
"""How long ranks may take to save and end after the first signal; a second one ends them at once."""
WATCH_S, LOST_S = 0.5, 8.0
"""How often a rank looks after the others, and how long it may go on when one of them is lost, unless it is writing."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COLLECTIVES = "distributed_c10d.py"
"""Where torch waits for other ranks."""
AGAIN = "the other ranks were stopped; the same command goes on from what was saved last"


@dataclass(frozen=True)
class Order:
    """What every rank is to do: the arguments of `train`, what has been warned of, the command line that is to be on
    record, the number of ranks, and the process that started them. With `score` it is to score a model: `model` (its
    file), `stage`, `clock`, and for what `score_model` keeps beside `out`, `key` and `partial`.
    """

    dataset: Dataset
    out: Path
    resolved: Resolved
    device: str
    quiet: bool
    fresh: bool
    trackers: list[str]
    warned: list[str]
    argv: list[str]
    ranks: int
    launcher: int
    score: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        data = self.dataset
        dataset = vars(data) | {
            "folder": str(data.folder),
            "tokenizer_bytes": base64.b64encode(data.tokenizer_bytes).decode(),
            "shards": {split: list(map(str, paths)) for split, paths in data.shards.items()},
            "sidecars": list(map(str, data.sidecars)),
            "documents": {split: str(path) for split, path in data.documents.items()},
        }
        resolved = {"values": self.resolved.values, "origins": self.resolved.origins, "preset": self.resolved.preset}
        return vars(self) | {"dataset": dataset, "out": str(self.out), "resolved": resolved}


def read_order(path: Path) -> Order:
    """The order in a file."""
    order = read_json(path)
    dataset, resolved = order["dataset"], order["resolved"]
    dataset |= {
        "folder": Path(dataset["folder"]),
        "tokenizer_bytes": base64.b64decode(dataset["tokenizer_bytes"]),
        "shards": {split: list(map(Path, paths)) for split, paths in dataset["shards"].items()},
        "sidecars": list(map(Path, dataset["sidecars"])),
        "documents": {split: Path(path) for split, path in dataset["documents"].items()},
    }
    config, _ = build_config(RunConfig(), [Layer("the launcher", resolved["values"])])
    made = {
        "dataset": Dataset(**dataset),
        "out": Path(order["out"]),
        "resolved": Resolved(config, resolved["origins"], resolved["preset"]),
    }
    return Order(**(order | made))


def check_ranks(ranks: int, device: str) -> None:
    """ConfigError where ranks cannot be started from here, SetupError when there are fewer GPUs than ranks."""
    import torch

    from pgolf.core.dist import under_torchrun

    if under_torchrun():
        raise ConfigError("torchrun has started this process already", f"--gpus {ranks}", "leave out --gpus")
    if device == "cpu":
        return
    if device not in ("auto", "cuda"):
        raise ConfigError(f"--gpus {ranks} takes as many devices, not one", f"--device {device}", "leave out --device")
    if (found := torch.cuda.device_count() if torch.cuda.is_available() else 0) < ranks:
        fix = f"add --device cpu for {ranks} processes on the CPU" if not found else f"use --gpus {found}"
        raise SetupError(f"{ranks} GPUs are asked for and {found} found", f"--gpus {ranks}", fix)


def train_on_ranks(
    ranks: int,
    dataset: Dataset,
    out: Path,
    resolved: Resolved,
    device: str,
    console: Console,
    fresh: bool = False,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """What `train` does, on this many processes; raises what the rank raised that failed first, with its number."""
    from pgolf.stages.train import finished

    resolved.config.train.micro_steps(ranks)
    entry = None if fresh else finished(dataset, out, resolved)
    if entry:
        return entry
    place = "cpu" if device == "cpu" else "cuda"
    warned, me = [*console.warnings], os.getpid()
    order = Order(dataset, out, resolved, place, console.quiet, fresh, list(trackers), warned, sys.argv, ranks, me)
    return do_on_ranks(order, console)


def score_on_ranks(
    ranks: int,
    resolved: Resolved,
    model: "ModelFile",
    dataset: Dataset,
    stage: str,
    method: Any,
    device: str,
    console: Console,
    how: "Scoring",
) -> dict[str, Any]:
    """What `run_method` does, on this many processes, with the method that `resolved` has. The document also has the
    warnings of this process, which the ranks do not repeat.
    """
    place = "cpu" if device == "cpu" else "cuda"
    kept = how.partial.path if how.partial else None
    began = time.monotonic() if how.began_s is None else how.began_s
    facts = {"model": str(model.path), "stage": stage, "clock": how.clock, "key": how.key, "began": began}
    facts |= {"partial": str(kept or ""), "partial_key": how.partial.key if how.partial else ""}
    facts["positions"] = str(how.positions or "")
    out = kept.parent if kept else Path()
    warned, me = [*console.warnings], os.getpid()
    order = Order(dataset, out, resolved, place, console.quiet, False, [], warned, sys.argv, ranks, me, facts)
    return do_on_ranks(order, console) | {"audit": how.audit}


def do_on_ranks(order: Order, console: Console) -> dict[str, Any]:
    """Have it done; what the first rank has made, or the error of the rank that failed first."""
    ranks = order.ranks
    with tempfile.TemporaryDirectory(prefix="pgolf-ranks-") as name:
        folder = Path(name)
        write_json(folder / ORDER, order.document())
        codes = run_ranks(ranks, folder)
        reports = {rank: read_json(path) for rank in range(ranks) if (path := report_path(folder, rank)).is_file()}
        if codes or 0 not in reports:
            raise first_failure(folder, ranks, codes, reports, order.score["stage"] if order.score else "train")
    console.warnings += reports[0]["warnings"][len(order.warned) :]
    return dict(reports[0]["entry"])


def report_path(folder: Path, rank: int) -> Path:
    """Where a rank says how it ended."""
    return folder / f"rank_{rank}.json"


def log_path(folder: Path, rank: int) -> Path:
    """What libraries print in a rank beyond the first."""
    return folder / f"rank_{rank}.log"


def run_ranks(ranks: int, folder: Path) -> dict[int, int]:
    """Start the ranks and wait for all of them; the exit codes of those that failed, in the order in which that was
    seen, negative for a signal. Interrupted when a signal ended it; the ranks have got it too and had time to save.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
    )
    if hasattr(config, "shutdown_timeout"):  # older releases of torch wait 30 s
        config.shutdown_timeout = PATIENCE_S
    with own_handlers(), silence("torch.distributed"):
        try:
            elastic_launch(config, sys.executable)("-m", "pgolf.stages.launch", str(folder))
        except ChildFailedError as error:
            found = sorted(error.failures.items(), key=lambda item: (item[1].timestamp, item[0]))
            return {rank: failure.exitcode for rank, failure in found}
        except SignalException as error:
            path = report_path(folder, 0)
            report = read_json(path) if path.is_file() else {}
            raise Interrupted(int(error.sigval), report.get("message", "")) from None
    return {}


@contextmanager
def own_handlers() -> Iterator[None]:
    """Put back the signal handlers that torchrun's launcher replaces."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def silence(name: str) -> Iterator[None]:
    """Let nothing that is logged below this name be printed."""
    logger = logging.getLogger(name)
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before


def first_failure(
    folder: Path, ranks: int, codes: dict[int, int], reports: dict[int, dict[str, Any]], work: str
) -> BaseException:
    """The error to raise: of a rank that was killed, else of the one that was the first to fail, which the others
    notice by broken connections. Libraries that notice may abort the process; that is no cause. Ranks without an exit
    code here were stopped because of it.
    """
    killed = [rank for rank, code in codes.items() if code < 0 and -code != signal.SIGABRT]
    silent = [rank for rank in codes if rank not in reports]
    told = sorted(("lost" in report, report["time"], rank) for rank, report in reports.items() if rank in codes)
    if not killed and told and not (told[0][0] and silent):
        return told_failure(f"rank {told[0][2]} of {ranks}", reports[told[0][2]])
    rank = next(iter(killed or silent or codes), 0)
    code, log = codes.get(rank, 0), log_path(folder, rank)
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} and no report"
    said = read_bytes(log, 1 << 30).decode(errors="replace").split("\n") if log.is_file() else []
    last = [line for line in said if line and code > 0][-1:]
    return SetupError(f"rank {rank} of {ranks} {how}", "; ".join([work, *last]), AGAIN)


def told_failure(who: str, report: dict[str, Any]) -> BaseException:
    """The error a rank has reported."""
    if "signal" in report:
        return Interrupted(report["signal"], report["message"])
    if "error" in report:
        found: PgolfError = getattr(errors, report["error"])(f"{who}: {report['what']}", report["where"], report["fix"])
        return found
    bug = RuntimeError(f"{who}: {report['bug']}")
    bug.add_note(report["traceback"])
    return bug


def joined_world(device: str) -> "World":
    """`join_world`; what gloo says when ranks find one another (torch 2.9) goes to standard error, for on standard
    output is a command's result.
    """
    from pgolf.core.dist import join_world, under_torchrun

    if not under_torchrun():
        return join_world(device)
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        return join_world(device)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def work_as_rank(folder: Path) -> dict[str, Any]:
    """Do what the order says; the report of a rank to which nothing has happened."""
    import torch

    from pgolf.core.dist import join_world
    from pgolf.stages.train import train

    order = read_order(folder / ORDER)
    threading.Thread(target=end_with, args=(order.launcher, folder), daemon=True).start()
    sys.argv = order.argv
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // order.ranks))
    world = join_world(order.device)
    console = Console(order.quiet or not world.leads)
    console.warnings += order.warned
    if order.score:
        entry = score_as_rank(order, order.score, world, console)
    else:
        entry = train(order.dataset, order.out, order.resolved, world, console, order.fresh, order.trackers)
    world.close()
    return {"entry": entry, "warnings": console.warnings}


def score_as_rank(order: Order, facts: dict[str, Any], world: "World", console: Console) -> dict[str, Any]:
    """Score a model together with the other ranks; the score document."""
    from pgolf.stages.eval_partial import PartialLedger
    from pgolf.stages.evaluate import Scoring, run_method
    from pgolf.stages.inputs import used_as
    from pgolf.stages.model_files import load_model

    model, stage = used_as(load_model(Path(facts["model"])), order.resolved), facts["stage"]
    how = Scoring(
        world=world,
        clock=facts["clock"],
        began_s=facts["began"],
        partial=PartialLedger(Path(facts["partial"]), facts["partial_key"]) if facts["partial"] else None,
        positions=Path(facts["positions"]) if facts["positions"] else None,
        key=facts["key"],
    )
    return run_method(model, order.dataset, stage, getattr(order.resolved.config, stage), order.device, console, how)


def end_with(launcher: int, folder: Path) -> None:
    """Clean up after the process that started this one when it is gone, and ask this one to save and end. Where a rank
    is lost, nothing more comes of this one: it ends, wherever it waits (for a GPU that waits for the other's, or in
    gloo, and no signal gets through to either), as soon as it has written what it is writing.
    """
    ranks, lost_s = set[int](), 0.0
    while os.getppid() == launcher:
        ranks |= ranks_of(launcher)
        time.sleep(WATCH_S)
        lost_s = lost_s + WATCH_S if is_lost(ranks, folder) else 0.0
        if lost_s > LOST_S and not writes():
            os._exit(128 + signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)


def ranks_of(launcher: int) -> set[int]:
    """The processes of the ranks that a process has started; none where the system does not tell."""
    listed = Path(f"/proc/{launcher}/task/{launcher}/children")
    try:
        started = {int(word) for word in listed.read_text().split()}
        return {one for one in started if b"\0RANK=" in Path(f"/proc/{one}/environ").read_bytes()}
    except OSError:
        return set()


def lives(process: int) -> bool:
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def is_lost(ranks: set[int], folder: Path) -> bool:
    """Whether one of these processes has ended without having done what the order says, and with it any hope."""
    gone = sum(not lives(one) for one in ranks)
    return gone > 0 and gone > sum("entry" in read_json(path) for path in folder.glob("rank_*.json"))


def writes() -> bool:
    """Whether a thread of this process is writing a checkpoint, or another file."""
    from pgolf.core.tensorfile import save_tensors
    from pgolf.stages.checkpoints import Checkpoints

    writers = [function.__code__ for function in (Checkpoints.write, save_tensors, write_bytes)]
    for frame in sys._current_frames().values():
        if any(place.f_code in writers for place, _ in traceback.walk_stack(frame)):
            return True
    return False


def lost_rank(error: BaseException) -> SetupError | None:
    """The error to report in place of one by which waiting for other ranks ended: what broke is not here."""
    if not isinstance(error, RuntimeError) or not waited(error):
        return None
    said = str(error).splitlines() or [type(error).__name__]
    return SetupError(
        f"the connection to another rank broke: {said[0]}",
        "torchrun",
        "see which rank failed first; the same command goes on from what was saved last",
    )


def waited(error: RuntimeError) -> bool:
    """Whether an error came up in a collective operation, or where pgolf waits for one that is under way. Errors of the
    GPU itself, which come up there as well, have other classes.
    """
    from torch.distributed import DistError

    from pgolf.core.dist import World, arrived

    last = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    if last and last[0].co_filename.endswith(COLLECTIVES):
        return True
    own = type(error) is RuntimeError or isinstance(error, DistError)
    return own and any(code in (arrived.__code__, World.largest.__code__) for code in last)


def redirect(folder: Path, rank: int) -> None:
    """Keep what libraries print out of the result, and out of sight in ranks beyond the first."""
    with open_log(log_path(folder, rank)) as log:
        for stream in (sys.stdout, sys.stderr) if rank else (sys.stdout,):
            os.dup2(log.fileno(), stream.fileno())


def main(folder: Path, rank: int) -> int:
    """One rank; the exit code says how it ended, and its report more. Where ranks fail together, the signal that stops
    this one may come while it is noting its own failure: that is no reason to say nothing.
    """
    install()
    redirect(folder, rank)
    try:
        report, code = attempt(folder)
    except Interrupted as interruption:
        report, code = {"signal": interruption.number, "message": str(interruption)}, 128 + interruption.number
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    if folder.is_dir():
        write_json(report_path(folder, rank), report | {"time": time.monotonic()})
    return code


def attempt(folder: Path) -> tuple[dict[str, Any], int]:
    """Do what the order says; the report, be it of a failure, and the exit code."""
    try:
        return work_as_rank(folder), 0
    except PgolfError as error:
        kept = {"error": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
        return kept, error.exit_code
    except Exception as error:
        if lost := lost_rank(error):
            return {"error": "SetupError", "what": lost.what, "where": lost.where, "fix": lost.fix, "lost": True}, 5
        return {"bug": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}, 1


def unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Say nothing of a signal that came while Python put something away, where nobody can catch what its handler
    raises; of anything else what Python says.
    """
    if not isinstance(found.exc_value, Interrupted):
        sys.__unraisablehook__(found)


if __name__ == "__main__":
    from pgolf.core.dist import torchrun_rank

    sys.unraisablehook = unraisable
    result = main(Path(sys.argv[1]), torchrun_rank())
    sys.stderr.flush()
    os._exit(result)  # without waiting for connections to ranks that may be gone
