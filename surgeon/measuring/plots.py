"""The four plots of a direction's report, as PNG: separation, drift, effect by writer, dose and response.

Drawn for a width of 360 to 600 CSS pixels at twice that resolution, on a light or a dark ground. The colours are those
of Okabe and Ito, which colour-blind readers tell apart; lines differ in dash and marker too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The plots' names, in the order a page shows them.
NAMES = ("separation", "drift", "effects", "dose")
_WIDTH, _DPI = 4.4, 240
_LIGHT = {"ground": "#ffffff", "ink": "#1c2024", "faint": "#d5d9de", "main": "#0072B2", "second": "#D55E00"}
_DARK = {"ground": "#1b2025", "ink": "#e6e9ec", "faint": "#434b54", "main": "#56B4E9", "second": "#E69F00"}
#: Ticks lie apart by one of these, times a power of ten.
_STEPS = [1, 2, 5, 10]
_KL_TICKS = (0, 0.001, 0.01, 0.1, 1, 10)

Rows = Sequence[Mapping[str, Any]]


def require_matplotlib() -> None:
    """RefusedError where matplotlib is missing; worth calling before the work that a report tells of."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        hint = "pip install 'model-surgeon[report]'"
        raise RefusedError("the report's plots need matplotlib, which is not installed", hint=hint) from None


def draw(report: Mapping[str, Any], *, dark: bool = False) -> dict[str, bytes]:
    """The plots of a report by name (`NAMES`), each the bytes of a PNG."""
    require_matplotlib()
    theme = _DARK if dark else _LIGHT
    with _styled(theme):
        return {
            "separation": _png(_separation(report["separation"], theme)),
            "drift": _png(_drift(report["drift"])),
            "effects": _png(_effects(report["effects"], report["chosen"], theme)),
            "dose": _png(_dose(report["dose"], report["chosen"]["strength"], theme)),
        }


@contextmanager
def _styled(theme: Mapping[str, str]) -> Iterator[None]:
    """Matplotlib's own defaults, whatever the reader's matplotlibrc says, in the colours of a theme."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        grounds = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme["ground"])
        inks = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme["ink"])
        sizes = {"font.size": 11, "axes.titlesize": 11, "legend.fontsize": 10, "legend.frameon": False}
        spines = {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": theme["ink"]}
        grid = {"axes.grid": True, "axes.grid.axis": "y", "grid.color": theme["faint"], "axes.axisbelow": True}
        looks: dict[Any, Any] = grounds | inks | sizes | spines | grid | {"axes.titlelocation": "left"}
        matplotlib.rcParams.update(looks)
        yield


def _png(figure: Figure) -> bytes:
    # Without a note of the library's version, so that the same report gives the same bytes.
    into = io.BytesIO()
    figure.savefig(into, format="png", dpi=_DPI, metadata={"Software": None})
    return into.getvalue()


def _figure(height: float, rows: int = 1, *, square: bool = False, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of one column of axes; no pyplot, whose figures would outlive their use."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="compressed" if square else "constrained")
    return figure, list(figure.subplots(rows, 1, squeeze=False, **shared)[:, 0])


def numbers(rows: Rows, key: str) -> list[float]:
    """One column of numbers; what was not measured is NaN."""
    return [float("nan") if row[key] is None else float(row[key]) for row in rows]


def _separation(rows: Rows, theme: Mapping[str, str]) -> Figure:
    figure, (axes,) = _figure(3.1)
    where = range(len(rows))
    looks = {
        "auroc": ("this direction", {"color": theme["main"], "marker": "o", "markersize": 3.5, "linewidth": 2}),
        "random": ("random", {"color": theme["second"], "linestyle": "--", "linewidth": 1.6}),
        "shuffled": ("shuffled labels", {"color": theme["ink"], "linestyle": ":", "linewidth": 1.8}),
    }
    for key, (label, look) in looks.items():
        axes.plot(where, numbers(rows, key), label=label, **look)
    least = min((value for key in looks for value in numbers(rows, key) if value == value), default=0.5)
    axes.set(ylim=(min(0.4, least - 0.03), 1.02), ylabel="held-out AUROC", xlabel="after block")
    _name_points(axes, [row["point"] for row in rows], "x")
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1, handlelength=1.6, handletextpad=0.5)
    return figure


def _drift(drift: Mapping[str, Any]) -> Figure:
    import numpy as np

    figure, (axes,) = _figure(3.4, square=True)
    cosine = np.array(drift["cosine"], dtype=float)
    shown = axes.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    for side in "xy":
        _name_points(axes, drift["points"], side)
    axes.set(xlabel="after block", ylabel="after block")
    bar = figure.colorbar(shown, ax=axes, ticks=[-1, 0, 1], fraction=0.05, pad=0.02, label="cosine")
    bar.outline.set_visible(False)
    return figure


def _name_points(axes: Axes, points: Sequence[str], side: str) -> None:
    """About six ticks, at the embedding and after whole blocks, by the block's number."""
    blocks = {int(point[6:]): at for at, point in enumerate(points) if re.fullmatch(r"block\.\d+", point)}
    step = next((step for step in (1, 2, 5, 10, 20) if len(blocks) <= 6 * step), 50)
    ticks = {str(block): at for block, at in blocks.items() if block % step == 0 and (block or step == 1)}
    ticks |= {point: at for at, point in enumerate(points) if point == "embed"}
    (axes.set_xticks if side == "x" else axes.set_yticks)(list(ticks.values()), list(ticks))


def _effects(rows: Rows, chosen: Mapping[str, Any], theme: Mapping[str, str]) -> Figure:
    """One panel a part, one bar a block, the chosen writers in the main colour."""
    from matplotlib.ticker import MaxNLocator

    figure, panels = _figure(3.5, 2, sharex=True, sharey=True)
    for axes, part in zip(panels, ("attention", "mlp"), strict=True):
        mine = [row for row in rows if row["part"] == part]
        colours = [theme["main" if edits(chosen, part, row["block"]) else "second"] for row in mine]
        axes.bar([row["block"] for row in mine], numbers(mine, "nats"), color=colours, width=0.8)
        axes.axhline(0, color=theme["ink"], linewidth=0.8)
        axes.set_title("attention output" if part == "attention" else "MLP output")
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=_STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
        axes.margins(x=0.02)
    panels[-1].set_xlabel("block")
    figure.supylabel("nats lost", fontsize=11)
    _key(figure, {"edited by the recipe": theme["main"], "left as it is": theme["second"]})
    return figure


def _key(figure: Figure, colours: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), handlelength=1)


def edits(chosen: Mapping[str, Any], part: str, block: int) -> bool:
    """Whether the chosen scope edits a part of a block; `layers` is half-open, as in a recipe."""
    writers = chosen["writers"]
    if writers != "all" and part not in writers:
        return False
    if chosen["layers"] is None:
        return True
    first, end = map(int, str(chosen["layers"]).split(".."))
    return first <= block < end


def _dose(rows: Rows, chosen: float, theme: Mapping[str, str]) -> Figure:
    """The manner above, its cost below, over one axis of strengths."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    rows = sorted(rows, key=lambda row: row["strength"])
    rated = any(row["rate"] is not None for row in rows)
    figure, panels = _figure(5.2 if rated else 3.8, 3 if rated else 2, sharex=True)
    if rated:
        axes = panels[0]
        axes.set_title("how often the manner shows")
        _curve(axes, rows, "rate", color=theme["main"], marker="o", label="on positive prompts")
        _curve(axes, rows, "rate_negative", color=theme["second"], marker="s", linestyle="--", label="on negative ones")
        axes.set(ylim=(-0.05, 1.05), yticks=(0, 0.5, 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1, handlelength=2.2, handletextpad=0.5)
    manner, cost = panels[-2:]
    manner.set_title("manner's log-probability, change in nats")
    _curve(manner, rows, "nats", color=theme["main"], marker="o")
    _cost(cost, rows, theme)
    for axes in panels:
        axes.axvline(chosen, color=theme["ink"], linestyle=":", linewidth=1.5)
    _name_chosen(manner, chosen, numbers(rows, "strength"))
    cost.xaxis.set_major_locator(MaxNLocator(7, steps=_STEPS))
    cost.set_xlabel("strength: <0 adds, 1 removes, 2 reflects")
    return figure


def _name_chosen(axes: Axes, chosen: float, strengths: Sequence[float]) -> None:
    """A word beside the line of the strength chosen, on its left where there is no room on its right."""
    left = chosen > 0.2 * min(strengths) + 0.8 * max(strengths)
    place: dict[str, Any] = {"xytext": (-4 if left else 4, -3), "ha": "right" if left else "left", "va": "top"}
    axes.annotate(
        "chosen", (chosen, 1), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=10, **place
    )


def _cost(axes: Axes, rows: Rows, theme: Mapping[str, str]) -> None:
    """KL on a logarithmic scale that reaches 0, so that a broken model does not flatten the rest."""
    axes.set_title("cost: KL on neutral text, nats a token")
    axes.set_yscale("symlog", linthresh=_KL_TICKS[1])
    _curve(axes, rows, "kl", color=theme["second"], marker="o")
    top = max((value for value in numbers(rows, "kl") if value == value), default=0.0)
    ticks = [tick for tick in _KL_TICKS if tick <= max(top, _KL_TICKS[1]) * 1.5]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(0, max(top, _KL_TICKS[1]) * 1.8)


def _curve(axes: Axes, rows: Iterable[Mapping[str, Any]], key: str, **look: Any) -> None:
    """A line through what was measured."""
    measured = [(row["strength"], float(row[key])) for row in rows if row[key] is not None]
    axes.plot(*zip(*measured, strict=True) if measured else ([], []), linewidth=2, markersize=5, **look)
