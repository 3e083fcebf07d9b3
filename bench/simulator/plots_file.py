"""What all figures of the simulator share: checks before drawing, colours, and how a file is made.

Figures are made without pyplot, so nothing is global; the same data give the same bytes.
matplotlib is optional and imported only when something is drawn.
"""

from __future__ import annotations

import importlib.util
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from helix_mq.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
DOTS_PER_INCH = 130
MAX_HEIGHT_IN = 60.0
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f7f7f",
    "#8c6d1f",
)
"""Told apart with any colour vision (mostly Okabe and Ito's)."""
DASHES = ("-", "--", ":", "-.")


def check_path(path: Path) -> None:
    """ConfigError if no figure can be drawn there: before a long run rather than after it."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"plot={path}: the name must end in {' or '.join(SUFFIXES)}", param="plot"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"plot={path}: there is no folder {path.parent}", param="plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "plot: drawing needs matplotlib; install helix-mq with the extra [plot]", param="plot"
        )


def new_figure(path: Path, width_in: float, height_in: float) -> Figure:
    """An empty figure that lays itself out. ConfigError as `check_path`."""
    check_path(path)
    return blank(width_in, height_in)


def blank(width_in: float, height_in: float) -> Figure:
    """As new_figure(), for no file yet."""
    from matplotlib.figure import Figure

    size = (width_in, min(height_in, MAX_HEIGHT_IN))
    return Figure(figsize=size, layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as its name's suffix says. ConfigError if the file cannot be written."""
    from matplotlib import rc_context

    _settle(figure)
    with rc_context({"svg.hashsalt": "helix-mq", "svg.fonttype": "none"}):
        kind = path.suffix.lower()[1:]
        stamp = {"Date": None} if kind == "svg" else {"Software": None}
        try:
            figure.savefig(path, format=kind, dpi=DOTS_PER_INCH, metadata=stamp)
        except OSError as e:
            raise ConfigError(
                f"plot={path}: cannot be written: {e.strerror or e}", param="plot"
            ) from None


def as_svg(figure: Figure) -> bytes:
    """What save() would write to an .svg."""
    from matplotlib import rc_context

    _settle(figure)
    with rc_context({"svg.hashsalt": "helix-mq", "svg.fonttype": "none"}):
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """Lays the figure out and rounds the result.

    The layout's solver orders its terms by address, so positions differ in their last bits from run
    to run, and ids in an SVG are hashes of positions.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        x, y, width, height = axes.get_position().bounds
        axes.set_position((round(x, 5), round(y, 5), round(width, 5), round(height, 5)))


def style(axes: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """The look of every panel: a quiet grid, a title to the left, no box."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(linewidth=0.4, color="#dcdcdc")
    axes.set_axisbelow(True)
