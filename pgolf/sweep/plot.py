"""A sweep as a picture: its two figures against each other with the Pareto front, or means with their errors."""

import io
from pathlib import Path
from typing import Any

from pgolf.core.errors import ConfigError, InputError, SetupError
from pgolf.core.files import make_dir, write_bytes
from pgolf.sweep.summary import (
    AXES,
    NAMES,
    Group,
    described,
    figure,
    front_rows,
    means,
    short_names,
    varying,
    where_scored,
)

LABELLED = 16
"""Most points of a picture that still get a label each; of more, only those of the front do."""
CAP_SHARE = 0.7
"""The cap is drawn when the largest point comes this close to it."""


def check_plot(out: Path) -> None:
    """ConfigError for an ending other than .png and .svg, SetupError without matplotlib."""
    if out.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"{out} is neither .png nor .svg", "--plot")
    try:
        from matplotlib.figure import Figure  # noqa: F401, only whether it can be had
    except ImportError:
        fix = "pip install 'pgolf[plot]', or leave out --plot"
        raise SetupError("drawing needs matplotlib, which is not installed", "--plot", fix) from None


def plot(groups: list[Group], out: Path) -> None:
    """Write a picture, one panel per group that has finished cells. InputError if none has."""
    from matplotlib.figure import Figure

    drawn = [group for group in groups if group.done]
    if not drawn:
        raise InputError("there is no finished cell to draw", str(out))
    heights = [panel_height(group) for group in drawn]
    picture = Figure(figsize=(8, sum(heights)), layout="constrained")
    panels: Any = picture.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)
    for panel, group in zip(panels[:, 0], drawn, strict=True):
        (draw_means if group.sweep == "train" else draw_front)(panel, group)
        panel.set_title(f"sweep {group.sweep}\n{where_scored(group)}".strip(), loc="left", fontsize=9)
        panel.grid(alpha=0.3)
    content = io.BytesIO()
    picture.savefig(content, format=out.suffix.lower().lstrip("."), dpi=150)
    make_dir(out.parent)
    write_bytes(out, content.getvalue())


def panel_height(group: Group) -> float:
    """Inches of a panel: a line per configuration of a training sweep."""
    return 1.5 + 0.35 * len(means(group)) if group.sweep == "train" else 5.0


def labels(settings: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """Every entry by its values of what they do not all share, and the names of these."""
    keys = varying(settings)
    values = [" ".join(str(entry.get(key, "-")) for key in keys) for entry in settings]
    return " ".join(short_names(keys).values()), values


def draw_front(panel: Any, group: Group) -> None:
    """Every cell as a point, those of the front joined by steps: what is on or right above them is beaten."""
    across, up = AXES[group.sweep]
    points = [(figure(row, across), figure(row, up)) for row in group.done]
    chosen = [(figure(row, across), figure(row, up)) for row in front_rows(group)]
    panel.scatter(*zip(*points), s=22, color="0.6", label="cells", zorder=2)
    panel.step(*zip(*chosen), where="post", marker="o", markersize=5, color="C0", label="Pareto front", zorder=3)
    names, texts = labels([described(row) for row in group.done])
    for text, point in zip(texts, points, strict=True):
        if point in chosen:  # below and left of the front there is never a point
            place: dict[str, Any] = {"xytext": (-4, -4), "ha": "right", "va": "top", "color": "C0"}
        elif len(points) <= LABELLED:
            place = {"xytext": (4, 4), "color": "0.4"}
        else:
            continue
        panel.annotate(text, point, textcoords="offset points", fontsize=7, **place)
    if across == "total_bytes":
        cap = max(row["figures"]["cap_bytes"] for row in group.done)
        if max(point[0] for point in points) > CAP_SHARE * cap:
            panel.axvline(cap, color="C3", linestyle="--", linewidth=1, label="cap")
        panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.margins(x=0.15, y=0.12)
    panel.set_xlabel(NAMES[across])
    panel.set_ylabel(NAMES[up])
    panel.legend(fontsize=8, title=names, title_fontsize=8)


def draw_means(panel: Any, group: Group) -> None:
    """A line per configuration: its runs as dots, their mean with its standard error, the best at the top."""
    found = means(group)
    names, texts = labels([mean.settings for mean in found])
    for place, mean in enumerate(found):
        scores = [figure(row, "bpb") for row in mean.rows]
        panel.plot(scores, [place] * len(scores), ".", color="0.6", zorder=2)
        panel.errorbar(mean.mean, place, xerr=mean.error or 0, fmt="o", capsize=3, color="C0", zorder=3)
    panel.set_yticks(range(len(found)), [text or "as configured" for text in texts], fontsize=8)
    panel.invert_yaxis()
    panel.margins(y=0.3 / max(len(found), 1) + 0.1)
    panel.set_ylabel(names, fontsize=8)
    panel.set_xlabel("BPB: runs, mean and its standard error")
