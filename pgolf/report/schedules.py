"""What a configuration changes in the course of a run: sampled values, and a picture of them."""

from pathlib import Path
from typing import Any

from pgolf.config.run import RunConfig
from pgolf.core.errors import ConfigError, SetupError
from pgolf.core.files import make_dir, write_bytes
from pgolf.core.optim.schedules import Progress

SHOWN = (0.0, 0.15, 0.35, 0.5, 0.7, 0.85, 0.99, 1.0)
"""Fractions of a run in the table."""

FINE = tuple(index / 400 for index in range(401))
"""Fractions in the picture and in JSON."""

TITLES = {
    "lr_scale": "learning rate, multiplier",
    "momentum": "Muon momentum",
    "matrix_decay_scale": "weight decay of matrices, multiplier",
    "decay_scale": "weight decay of all else, multiplier",
    "loop": "layer loop on",
    "qat": "quantization-aware training on",
    "row_tokens": "tokens per row",
    "window_tokens": "how far the window schedule lets attention look, 0: no limit",
}
"""Column -> what it is."""


def sample(config: RunConfig, fractions: tuple[float, ...]) -> list[dict[str, float]]:
    """The schedules at fractions of the run, 0 to 1. A run is taken to make all its `train.iterations` steps at one
    speed, in the whole budget if it has one: where the clock ends it earlier, what goes by steps is not as far.
    """
    train, optim = config.train, config.optim
    rows = []
    for fraction in fractions:
        step = round(fraction * train.iterations)
        budget_s = train.max_wallclock_seconds
        now = Progress(step, train.iterations, fraction * budget_s, budget_s)
        scale, windows = optim.warmdown.scale(now), train.window_schedule.extra_parts(fraction, 1.0)
        matrices, others = optim.decay_schedule.scales(now)
        rows.append(
            {
                "fraction": fraction,
                "step": step,
                "lr_scale": scale,
                "momentum": optim.matrix.momentum_at(step),
                "matrix_decay_scale": matrices,
                "decay_scale": others,
                "loop": float(config.model.loop.is_on(fraction)),
                "qat": float(bool(train.qat.extra_parts(fraction, scale))),
                "row_tokens": train.length_schedule.length(fraction, train.seq_len) or train.seq_len,
                "window_tokens": windows[0].tokens if windows else 0,
            }
        )
    return rows


def plot(rows: list[dict[str, float]], title: str, out: Path) -> None:
    """Write a picture of sampled schedules, PNG or SVG by the name. ConfigError for another ending, SetupError without
    matplotlib.
    """
    import io

    kind = out.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise ConfigError(f"{out} is neither .png nor .svg", "--out")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        fix = "pip install 'pgolf[plot]', or leave out --out"
        raise SetupError("drawing needs matplotlib, which is not installed", "--out", fix) from None
    figure = Figure(figsize=(8, 13), layout="constrained")
    axes: Any = figure.subplots(len(TITLES), 1, sharex=True)
    for axis, (key, text) in zip(axes, TITLES.items(), strict=True):
        axis.plot([row["fraction"] for row in rows], [row[key] for row in rows])
        axis.set_title(text, loc="left", fontsize=9)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("fraction of the run")
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, format=kind)
    make_dir(out.parent)
    write_bytes(out, picture.getvalue())
