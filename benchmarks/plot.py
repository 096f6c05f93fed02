"""The charts: one for each workload, as SVG and PNG. The only module that needs matplotlib.

A bar is a median, and its whisker goes from the worst round to the best. The best server is at the top; echo7's bars
are coloured. The `shape` workloads share one chart, with a line for each server.
"""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib
from matplotlib import ticker

from benchmarks import report
from benchmarks.results import Results, Spread
from benchmarks.servers import BY_NAME
from benchmarks.workloads import Figure, Workload

matplotlib.use("Agg")
from matplotlib import pyplot

OURS, THEIRS, WHISKER, FAINT = "#c2410c", "#a8b3c2", "#1f2937", "#6b7280"
WIDTH_INCHES, BAR_INCHES, FRAME_INCHES = 9.0, 0.34, 1.5
LINES_INCHES = 6.0
DOTS_PER_INCH = 150
SHAPE = "shape"
FAR_APART = 40  # above this ratio of the longest bar to the shortest: a logarithmic scale
STYLES = ("-", "--", ":", "-.")
COLOURS = ("#2563eb", "#059669", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#475569", "#b45309")


def draw_all(folder: pathlib.Path, workloads: list[Workload], results: dict[str, Results]) -> None:
    """Draw a chart of each measured workload."""
    matplotlib.rcParams.update({"font.size": 10, "font.family": "DejaVu Sans"})
    # text as text makes a file of a third of the size
    matplotlib.rcParams.update({"svg.hashsalt": "echo7", "svg.fonttype": "none"})
    shape = [workload for workload in workloads if workload.group == SHAPE and workload.name in results]
    for workload in workloads:
        if workload.name in results and workload not in shape:
            _save(_bars(workload, results[workload.name]), folder / workload.name)
    if shape:
        _save(_lines(shape, results), folder / SHAPE)


def _save(drawing: Any, path: pathlib.Path) -> None:
    if drawing is None:
        return
    for form in ("svg", "png"):
        drawing.savefig(path.with_suffix(f".{form}"), dpi=DOTS_PER_INCH)
    pyplot.close(drawing)


def _bars(workload: Workload, results: Results) -> Any:
    figure = workload.figures[0]
    found = {name: spread for name in results.servers if (spread := results.spread(name, figure.key))}
    if not found:
        return None
    # barh draws from the bottom up, so the best comes last
    names = sorted(found, key=lambda name: found[name].median, reverse=figure.less_is_better)
    medians = [found[name].median for name in names]
    drawing, axes = pyplot.subplots(
        figsize=(WIDTH_INCHES, FRAME_INCHES + BAR_INCHES * len(names)), layout="constrained"
    )
    axes.barh(names, medians, height=0.68, color=[OURS if BY_NAME[name].ours else THEIRS for name in names])
    for at, name in enumerate(names):
        spread = found[name]
        axes.plot([spread.least, spread.most], [at, at], color=WHISKER, linewidth=1.1, marker="|", markersize=6)
    most = max(spread.most for spread in found.values())
    _scale(axes, medians, most)
    _label_bars(axes, [found[name] for name in names], figure)
    axes.set_yticks(range(len(names)), [BY_NAME[name].title for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if BY_NAME[name].ours else "normal")
    _dress(drawing, axes, workload.title)
    scale = "; logarithmic scale" if axes.get_xscale() == "log" else ""
    better = "less" if figure.less_is_better else "more"
    axes.set_xlabel(f"{figure.title}   ({better} is better; whiskers: all rounds{scale})")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    return drawing


def _scale(axes: Any, medians: list[float], most: float) -> None:
    least = min(medians)
    if least > 0 and most > FAR_APART * least:
        axes.set_xscale("log")
        axes.set_xlim(least / 2, most * 3)  # room for the last number
    else:
        axes.set_xlim(min(0.0, least), most * 1.16)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _label_bars(axes: Any, spreads: list[Spread], figure: Figure) -> None:
    for at, spread in enumerate(spreads):
        axes.annotate(
            f"{spread.median:,.{figure.digits}f}",
            (max(spread.most, spread.median), at),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=WHISKER,
        )


def _dress(drawing: Any, axes: Any, title: str) -> None:
    drawing.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    drawing.supxlabel(report.machine_line(), fontsize=7.5, color=FAINT, x=0.01, ha="left")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _lines(shape: list[Workload], results: dict[str, Results]) -> Any:
    figure = shape[0].figures[0]
    drawing, axes = pyplot.subplots(figsize=(WIDTH_INCHES, LINES_INCHES), layout="constrained")
    names = [name for name in BY_NAME if any(name in results[workload.name].servers for workload in shape)]
    for at, name in enumerate(names):
        points = [
            (workload.count, spread.median)
            for workload in shape
            if (spread := results[workload.name].spread(name, figure.key))
        ]
        if not points:
            continue
        ours = BY_NAME[name].ours
        axes.plot(
            *zip(*points, strict=True),
            label=BY_NAME[name].title,
            color=OURS if ours else COLOURS[at % len(COLOURS)],
            linestyle="-" if name == "echo7" else STYLES[at // len(COLOURS) if not ours else 1],
            linewidth=3 if ours else 1.4,
            marker="o",
            markersize=6 if ours else 3.5,
            zorder=3 if ours else 2,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("connections at once, each with one message under way")
    axes.set_ylabel(f"{figure.title}   (less is better)")
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    _dress(drawing, axes, "CPU time per message, TCP ping-pong of 128 B")
    return drawing
