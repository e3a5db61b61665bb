"""Options that every command spells the same way."""

from pathlib import Path
from typing import Annotated

import typer

from pgolf.core.errors import InputError


def is_missing(path: Path) -> bool:
    """Whether nothing has this name; not so where that cannot be told."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        pass
    return False


def there(path: Path | None) -> Path | None:
    """A path to read. InputError if nothing has its name, said before torch is loaded, which takes seconds."""
    if path is not None and is_missing(path):
        raise InputError("no such file or directory", str(path), "check the path")
    return path


def all_there(paths: list[Path] | None) -> list[Path] | None:
    """Paths to read, as `there` looks at each."""
    return [path for path in paths if there(path)] if paths else paths


Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", callback=there, help="Checkpoint, quantized model or artifact; the file says which."
    ),
]
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", callback=there, help="Float checkpoint.")]
Quantized = Annotated[Path, typer.Argument(metavar="QUANTIZED", callback=there, help="Quantized model.")]
Dataset = Annotated[
    Path, typer.Argument(metavar="DATA", callback=there, help="Dataset directory, or published shards.")
]
Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        help="Named preset or TOML file, or several as A,B, the later over the earlier. See pgolf config show.",
        rich_help_panel="Configuration",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one value by its dotted key; repeatable.",
        rich_help_panel="Configuration",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of the initial weights (train.seed).", rich_help_panel="Configuration"),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, cuda or cuda:N. Stages that only use the CPU check that the device exists.",
        rich_help_panel="Running",
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        metavar="N",
        min=1,
        help="Train on N GPUs of this machine, one process each; with --device cpu N processes on the CPU.",
        rich_help_panel="Running",
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="One JSON document on standard output, everything else on standard error.",
        rich_help_panel="Running",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check everything and say what would be done, but do nothing.", rich_help_panel="Running"
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only warnings and errors on standard error.", rich_help_panel="Running")
]
Force = Annotated[
    bool, typer.Option("--force", help="Do it again even if the output is up to date.", rich_help_panel="Running")
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME",
        help="Show the training in tensorboard, wandb or trackio as well; repeatable. None of them can stop a run.",
        rich_help_panel="Running",
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="FILE", help="SentencePiece model; found beside the shards if left out."),
]
Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DIR", callback=there, help="Dataset directory: made by pgolf tokenize, or published shards."
    ),
]


def merged(sets: list[str] | None, seed: int | None) -> list[str]:
    """--set assignments with --seed as the last of them."""
    return [*(sets or []), *([f"train.seed={seed}"] if seed is not None else [])]
