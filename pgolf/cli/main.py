"""The pgolf command. Nothing heavy is imported here: `pgolf --help` must answer in well under 150 ms."""

import contextlib
import errno
import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import typer

from pgolf import __version__
from pgolf.cli import (
    audit_cmd,
    bundle_cmd,
    compare_cmd,
    config_cmd,
    data_cmd,
    inspect_cmd,
    package_cmd,
    plot_cmd,
    report_cmd,
    run_cmd,
    score_cmd,
    stage_cmds,
    sweep_cmd,
)
from pgolf.cli.output import print_json
from pgolf.core.errors import ConfigError, PgolfError, SetupError, StorageError

EPILOG = (
    "Exit codes: 0 ok · 1 a bug in pgolf · 2 usage · 3 bad input · 4 a limit or rule · 5 something missing · "
    "6 disk or network · 7 locked · 129, 130, 143 interrupted"
)

app = typer.Typer(
    name="pgolf",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    help="Train, quantize, compress, score and package tiny language models for parameter golf.",
)


def show_version(value: bool) -> None:
    """Print the version and leave."""
    if value:
        print(f"pgolf {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version."),
) -> None:
    """Train, quantize, compress, score and package tiny language models for parameter golf."""


for module in (
    run_cmd,
    data_cmd,
    stage_cmds,
    score_cmd,
    sweep_cmd,
    package_cmd,
    inspect_cmd,
    bundle_cmd,
    report_cmd,
    plot_cmd,
    audit_cmd,
    compare_cmd,
    config_cmd,
):
    module.register(app)


def report_error(error: PgolfError, as_json: bool) -> int:
    """One line on standard error, and the JSON error document if asked for; returns the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return error_document(as_json, error.exit_code, type(error).__name__, error.what, error.where, error.fix)


def error_document(as_json: bool, code: int, kind: str, what: str, where: str = "", fix: str = "") -> int:
    """Print the JSON error document if asked for; returns the exit code."""
    if as_json:
        parts = {"code": code, "kind": kind, "what": what, "where": where, "fix": fix}
        print_json({"schema": "pgolf.error/1", "error": parts})
    return code


def report_bug(error: BaseException, as_json: bool) -> int:
    """Save the traceback of a bug and say where it is."""
    import tempfile
    import traceback

    handle, path = tempfile.mkstemp(prefix="pgolf-crash-", suffix=".txt")
    with os.fdopen(handle, "w") as file:
        file.write("".join(traceback.format_exception(error)))
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    print(f"error: a bug in pgolf: {first}. The traceback is in {path}", file=sys.stderr)
    return error_document(as_json, 1, type(error).__name__, f"a bug in pgolf: {first}", path, "please report it")


def usage_error(stop: SystemExit) -> str:
    """What typer has found wrong with the command line, for which it ends the program; empty if it ends otherwise."""
    told = getattr(stop.__context__, "format_message", None)
    return str(told()) if told and stop.code == 2 else ""


def refuse_second_preset(arguments: list[str]) -> None:
    """ConfigError for a second --preset, beside which the first would be forgotten. What follows -- is not ours."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if sum(word.partition("=")[0] == "--preset" for word in own) > 1:
        raise ConfigError("it is given twice", "--preset", "name all at once, as in --preset leader,quant_trellis")


def main(argv: list[str] | None = None, began_s: float | None = None) -> int:
    """Run a command line and return its exit code. `began_s` is when that began, on the monotonic clock, if not now."""
    from pgolf.stages.signals import Interrupted, install

    arguments = sys.argv[1:] if argv is None else argv
    as_json = "--json" in arguments
    with contextlib.suppress(ValueError):
        install()
    try:
        refuse_second_preset(arguments)
        result: Any = app(arguments, standalone_mode=True, obj=time.monotonic() if began_s is None else began_s)
        return int(result or 0)
    except SystemExit as stop:
        closed = isinstance(stop.__context__, OSError) and stop.__context__.errno == errno.EPIPE
        if what := usage_error(stop):
            return error_document(as_json, 2, "UsageError", what, "", "see --help")
        return quiet_pipe() if closed else stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except PgolfError as error:
        return report_error(error, as_json)
    except Interrupted as interruption:
        print(f"interrupted: {interruption}", file=sys.stderr)
        return error_document(as_json, 128 + interruption.number, "Interrupted", str(interruption))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return error_document(as_json, 130, "Interrupted", "interrupted")
    except BrokenPipeError:
        return quiet_pipe()
    except ModuleNotFoundError as error:
        fix = f"pip install {error.name}"
        return report_error(SetupError(f"the package {error.name} is missing", "import", fix), as_json)
    except OSError as error:
        return report_error(StorageError(f"the system refuses: {(error.strerror or str(error)).lower()}"), False)
    except Exception as error:
        from pgolf.stages.launch import lost_rank

        lost = lost_rank(error)
        return report_error(lost, as_json) if lost else report_bug(error, as_json)


def quiet_pipe() -> int:
    """The reader of our output is gone: leave without a word, as other tools do."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def process_age_s() -> float:
    """Seconds since this process began, as the system knows it; 0 where it does not say."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def prepare_streams() -> None:
    """Make output streams that exist and never fail on a character the terminal cannot show."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115, it stays open to the end
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def ended(argv: list[str] | None = None, began_s: float | None = None) -> int:
    """As `main`, also where a signal comes while that ends; after it, signals change the exit code no longer."""
    from pgolf.stages.signals import Interrupted, ending

    try:
        code = main(argv, began_s)
        for number in ending():
            signal.signal(number, signal.SIG_IGN)
    except Interrupted as late:
        code = 128 + late.number
    return code


def entry() -> None:
    """The console script."""
    prepare_streams()
    code = ended(began_s=time.monotonic() - process_age_s())
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        quiet_pipe()
    except OSError as error:
        print(f"error: writing the result failed: {error.strerror}", file=sys.stderr)
        quiet_pipe()
        code = StorageError.exit_code
    sys.exit(code)
