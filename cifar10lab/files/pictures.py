"""Pictures as PNG, drawn with matplotlib's own defaults, whatever its user has set."""

import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from cifar10lab.files.writing import write_file
from cifar10lab.terminal.errors import UserError, in_one_line

# Matplotlib's own and, for signs that it lacks, those that come with systems or are free: the first that has a sign.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Malgun Gothic", "Yu Gothic",
         "PingFang SC", "Hiragino Sans", "WenQuanYi Zen Hei", "Nirmala UI", "Arial Unicode MS")  # fmt: skip


def png(draw: Callable[..., None], *arguments: object) -> bytes:
    """The PNG file of the figure that `draw(figure, *arguments)` fills; matplotlib's warnings are printed in a line."""
    import matplotlib.style  # takes half a second: only when there is something to draw
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    fonts, content = [name for name in FONTS if name in fontManager.get_font_names()], io.BytesIO()
    style = ["default", {"text.parse_math": False, "font.family": fonts}]  # a dollar sign is one
    with matplotlib.style.context(style), warnings.catch_warnings(record=True) as caught:
        figure = Figure(layout="constrained")
        draw(figure, *arguments)
        figure.savefig(content, format="png", dpi=figure.dpi, metadata={"Software": None})
    if caught:
        print("warning:", " ".join({str(warning.message): None for warning in caught}), file=sys.stderr)
    return content.getvalue()


def write_picture(path: Path, draw: Callable[..., None], *arguments: object) -> bool:
    """Write `png` of these to a file. What goes wrong is a warning: results don't depend on their picture."""
    try:
        write_file(path, png(draw, *arguments))
        return True
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
    except Exception as error:  # matplotlib and its fonts raise many kinds
        print(f"warning: {path} can't be drawn: {in_one_line(error)}", file=sys.stderr)
    return False
