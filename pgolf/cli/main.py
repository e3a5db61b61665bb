"""The pgolf command. Nothing heavy is imported here: `pgolf --help` must answer in well under 150 ms."""

import contextlib
import os
import sys
from typing import Any

import typer

from pgolf import __version__
from pgolf.cli import config_cmd, inspect_cmd, package_cmd, run_cmd, score_cmd, stage_cmds
from pgolf.cli.output import print_json
from pgolf.core.errors import PgolfError

EPILOG = (
    "Exit codes: 0 ok · 1 a bug in pgolf · 2 usage · 3 bad input · 4 a limit or rule · 5 something missing · "
    "6 disk or network · 7 locked · 130, 143 interrupted"
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


for module in (run_cmd, stage_cmds, score_cmd, package_cmd, inspect_cmd, config_cmd):
    module.register(app)


def report_error(error: PgolfError, as_json: bool) -> int:
    """One line on standard error, and the JSON error document if asked for; returns the exit code."""
    print(f"error: {error}", file=sys.stderr)
    if as_json:
        parts = {
            "code": error.exit_code,
            "kind": type(error).__name__,
            "what": error.what,
            "where": error.where,
            "fix": error.fix,
        }
        print_json({"schema": "pgolf.error/1", "error": parts})
    return error.exit_code


def report_bug(error: BaseException) -> int:
    """Save the traceback of a bug and say where it is."""
    import tempfile
    import traceback

    handle, path = tempfile.mkstemp(prefix="pgolf-crash-", suffix=".txt")
    with os.fdopen(handle, "w") as file:
        file.write("".join(traceback.format_exception(error)))
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    print(f"error: a bug in pgolf: {first}. The traceback is in {path}", file=sys.stderr)
    return 1


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    from pgolf.stages.signals import Interrupted, install

    arguments = sys.argv[1:] if argv is None else argv
    with contextlib.suppress(ValueError):
        install()
    try:
        result: Any = app(arguments, standalone_mode=True)
        return int(result or 0)
    except SystemExit as stop:
        return int(stop.code or 0) if isinstance(stop.code, int | type(None)) else 1
    except PgolfError as error:
        return report_error(error, "--json" in arguments)
    except Interrupted as interruption:
        print(f"interrupted: {interruption}", file=sys.stderr)
        return 128 + interruption.number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return quiet_pipe()
    except Exception as error:
        return report_bug(error)


def quiet_pipe() -> int:
    """The reader of our output is gone: leave without a word, as other tools do."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def entry() -> None:
    """The console script."""
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        quiet_pipe()
    except OSError as error:
        print(f"error: writing the result failed: {error.strerror}", file=sys.stderr)
        quiet_pipe()
        code = 6
    sys.exit(code)
