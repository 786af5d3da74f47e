"""A picture of a mixture: the weight of each domain over the steps, beside its natural share. Needs the extra `plot`."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from dataflex_tools.artifact.files import write_bytes
from dataflex_tools.artifact.mixture import LoadedMixture, load_mixture, natural_share
from dataflex_tools.core.config import require
from dataflex_tools.core.errors import ConfigError
from dataflex_tools.core.printable import printable
from dataflex_tools.report.mixtures import is_mixture

# K drawn domains, S states or entries of a schedule

# Paul Tol's "muted" colours, told apart with any colour vision; https://sronpersonalpages.nl/~pault/
_COLOURS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#DDCC77", "#44AA99", "#AA4499", "#999933", "#777777")
_SHOWN_DOMAINS = len(_COLOURS)
_POINTS = 2000  # of a line: more than pixels across
_LABEL_GAP = 0.075  # of the height of the axes: a line of text and its air
_NAME = 17  # characters that fit beside the axes
_INK, _FAINT = "#222222", "#8A8A8A"


def check_picture(folder: Path, path: Path) -> None:
    """Raise ConfigError if the weights of the artifact in `folder` could not be drawn to `path`.

    That is: matplotlib is not installed, the ending is not .png or .svg, the artifact is no mixture, or `path` lies in it.
    """
    require(path.suffix.lower() in (".png", ".svg"), f"picture {path} ends in {path.suffix!r}, wanted .png or .svg")
    require(is_mixture(folder), f"{folder} is no mixture, and a picture shows the weights of one; leave out --picture")
    inside = folder.resolve() in path.resolve().parents
    require(not inside, f"picture {path} lies in the artifact {folder}, whose files are listed; choose another place")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("a picture needs matplotlib, which is not installed: pip install 'flextools[plot]'") from None


def draw_mixture(folder: Path, path: Path) -> None:
    """Draw the mixture in `folder` to `path`, .png or .svg; equal mixtures give equal bytes for one matplotlib version.

    Lines are the weights over optimizer steps, as a trajectory or a schedule has them; points at their end are the weights
    of the plan, and dashes the natural shares. Weights that never changed are drawn as bars. The domains with the largest
    weights are drawn, the others as one. Raises as `check_picture` does.
    """
    check_picture(folder, path)
    import matplotlib
    from matplotlib.figure import Figure

    loaded = load_mixture(folder)
    kind = path.suffix.lower().removeprefix(".")
    # the user's own style must not change the picture
    style: Any = {**matplotlib.rcParamsDefault, "backend": "agg", "svg.hashsalt": "flextools"}
    style |= {"font.size": 9.5, "text.color": _INK, "axes.edgecolor": _FAINT}
    out = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8.4, 4.6), dpi=150, layout=None)
        _draw(figure, loaded)
        # neither a date nor the version of the drawing library
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, out.getvalue())


def _draw(figure: Any, loaded: LoadedMixture) -> None:
    shown = _Shown(loaded)
    if len(shown.step_S) > 1:
        axes = figure.add_axes((0.09, 0.12, 0.55, 0.70))
        _lines(axes, shown)
    else:
        axes = figure.add_axes((0.19, 0.12, 0.60, 0.70))
        _bars(axes, shown)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_INK, length=3)
    figure.text(0.02, 0.955, shown.title, fontsize=12, fontweight="bold", va="center", parse_math=False)
    figure.text(0.02, 0.905, shown.subtitle, fontsize=9, color="#555555", va="center", parse_math=False)
    # a table at the right margin, in the coordinates of the figure; its rows are at the heights the axes chose
    columns = [(0.885, "weight", shown.weight_K)]
    if shown.natural_K is not None:
        columns.append((0.975, "in the data", shown.natural_K))
    for right, title, share_K in columns:
        figure.text(right, 0.85, title, fontsize=8.5, color="#555555", ha="right", va="center")
        for share, height in zip(share_K, shown.height_K, strict=True):
            place = axes.get_position().y0 + height * axes.get_position().height
            figure.text(right, place, _percent(share), fontsize=8.8, ha="right", va="center")


class _Shown:
    """What is drawn of a mixture, largest weight first; `weight_K` is the plan's, `weight_SK` what led to it."""

    def __init__(self, loaded: LoadedMixture) -> None:
        mixture, manifest = loaded.mixture, loaded.manifest
        found = natural_share(manifest, mixture.names)
        is_trajectory = len(mixture.trajectory) > 1
        if is_trajectory:
            self.step_S = np.array([state.step for state in mixture.trajectory])
            weight_SK = np.stack([state.weight_K for state in mixture.trajectory])
        else:
            self.step_S, weight_SK = mixture.step_S, mixture.weight_SK
        every = -(-len(self.step_S) // _POINTS)
        kept_S = np.unique([*range(0, len(self.step_S), every), len(self.step_S) - 1])
        self.step_S = self.step_S[kept_S]
        order = np.argsort(-mixture.weight_SK[-1], kind="stable")
        groups = [[code] for code in order]
        if len(groups) > _SHOWN_DOMAINS:
            groups = [*groups[: _SHOWN_DOMAINS - 1], order[_SHOWN_DOMAINS - 1 :].tolist()]
        self.names = [mixture.names[g[0]] if len(g) == 1 else f"{len(g)} others" for g in groups]
        self.weight_SK = np.stack([weight_SK[kept_S][:, g].sum(axis=1) for g in groups], axis=1)
        self.weight_K = np.array([mixture.weight_SK[-1, g].sum() for g in groups])
        self.natural_K = np.array([found[0][g].sum() for g in groups]) if found else None
        self.is_stairs = not is_trajectory
        self.height_K = np.zeros(len(groups))  # of the rows of the table, 0 to 1 of the axes
        self.title = f"{printable(manifest['method'])}: weight of each domain"
        natural = f"dashes: share of the data in {found[1]}" if found else "natural shares are not known"
        if len(self.step_S) == 1:
            self.subtitle = f"the same at every step; {natural}"
        else:
            line = "weights as they were decided" if is_trajectory else "weights to train with"
            points = "the last weights" if len(mixture.step_S) > 1 else "weights to train with"
            self.subtitle = f"lines: {line}; points: {points}; {natural}"


def _lines(axes: Any, shown: _Shown) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    end = max(1.0, shown.step_S[-1] * 1.03)
    for code in reversed(range(len(shown.names))):
        step_S, weight_S, how = shown.step_S, shown.weight_SK[:, code], {}
        if shown.is_stairs:  # the last weights hold on
            step_S, weight_S, how = np.append(step_S, end), np.append(weight_S, weight_S[-1]), {"drawstyle": "steps-post"}
        axes.plot(step_S, weight_S, color=_COLOURS[code], lw=1.8, solid_joinstyle="round", **how)
        if shown.natural_K is not None:
            axes.axhline(shown.natural_K[code], color=_COLOURS[code], lw=1.0, ls=(0, (5, 4)), alpha=0.8, zorder=1)
    highest = max(shown.weight_SK.max(), shown.weight_K.max(), 0.0 if shown.natural_K is None else shown.natural_K.max())
    axes.set_xlim(0, end)
    axes.set_ylim(0, min(1.02, highest * 1.06))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    axes.grid(axis="y", color="#E8E8E8", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("share of the training")
    _end_labels(axes, shown)


def _end_labels(axes: Any, shown: _Shown) -> None:
    """A point for each domain's weight in the plan and its name beside it, moved apart where they would touch."""
    top = axes.get_ylim()[1]
    shown.height_K = spread(shown.weight_K / top, gap=_LABEL_GAP)
    for code, name in enumerate(shown.names):
        point, label = shown.weight_K[code] / top, shown.height_K[code]
        options = {"transform": axes.transAxes, "clip_on": False, "color": _COLOURS[code]}
        axes.plot([1.0, 1.045, 1.06], [point, label, label], lw=0.9, **options)
        axes.plot([1.0], [point], marker="o", ms=5.5, mec="white", mew=0.8, **options)
        axes.text(1.075, label, _short(name), transform=axes.transAxes, va="center", fontsize=8.8, parse_math=False)


def _bars(axes: Any, shown: _Shown) -> None:
    from matplotlib.ticker import FuncFormatter

    rows = np.arange(len(shown.names))
    axes.barh(rows, shown.weight_K, height=0.6, color="#4477AA", zorder=2)
    for row, natural in enumerate([] if shown.natural_K is None else shown.natural_K):
        axes.plot([natural, natural], [row - 0.4, row + 0.4], color=_INK, lw=1.4, ls=(0, (3, 2)), zorder=3)
    axes.set_yticks(rows, [_short(name) for name in shown.names], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    shown.height_K = 1 - (rows + 0.5) / len(rows)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.grid(axis="x", color="#E8E8E8", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("share of the training")


def _short(name: str) -> str:
    name, half = printable(name), (_NAME - 3) // 2
    return name if len(name) <= _NAME else f"{name[:half]}...{name[-half:]}"


def spread(wanted_K: np.ndarray, *, gap: float) -> np.ndarray:
    """Places in [0, 1], (K,), as near to the wanted ones as can be with `gap` between any two; closer if they do not fit.

    The order is kept. It is the least-squares answer: neighbours that would touch share their mean.
    """
    order = np.argsort(wanted_K, kind="stable")
    gap = min(gap, 1 / max(1, len(order) - 1))
    offset_K = gap * np.arange(len(order))
    blocks: list[tuple[float, int]] = []  # mean of wanted - offset, and how many share it
    for value in wanted_K[order] - offset_K:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, number = blocks.pop()
            mean, count = (before * number + mean * count) / (number + count), number + count
        blocks.append((mean, count))
    level_K = np.repeat([mean for mean, _ in blocks], [count for _, count in blocks])
    placed_K = np.empty(len(order))
    placed_K[order] = np.clip(level_K, 0, max(0.0, 1 - offset_K[-1])) + offset_K
    return placed_K


def _percent(share: float) -> str:
    return "0 %" if share == 0 else f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"
