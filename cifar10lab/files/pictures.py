"""Pictures as PNG, drawn with matplotlib's own defaults, whatever its user has set."""

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cifar10lab.files.writing import write_file
from cifar10lab.terminal.errors import UserError, in_one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib's own and, for signs that it lacks, those that come with systems or are free: the first that has a sign.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Malgun Gothic", "Yu Gothic",
         "PingFang SC", "Hiragino Sans", "WenQuanYi Zen Hei", "Nirmala UI", "Arial Unicode MS")  # fmt: skip


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Figures are made and saved as on a fresh machine, whatever style a user has; a `$` in a text is a dollar sign."""
    import matplotlib.style
    from matplotlib.font_manager import fontManager

    fonts = [name for name in FONTS if name in fontManager.get_font_names()]
    with matplotlib.style.context(["default", {"text.parse_math": False, "font.family": fonts}]):
        yield


def png(figure: "Figure", dpi: int) -> bytes:
    """The figure as a PNG file, in `default_style`. What matplotlib warns of, as of signs in no font, is one line."""
    content = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    if caught:
        print("warning:", " ".join({str(warning.message): None for warning in caught}), file=sys.stderr)
    return content.getvalue()


def write_picture(path: Path, draw: Callable[..., bytes], *arguments: object) -> bool:
    """Write what `draw` draws of the arguments. What goes wrong is a warning: results don't depend on their picture."""
    try:
        write_file(path, draw(*arguments))
        return True
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
    except Exception as error:  # matplotlib and its fonts raise many kinds
        print(f"warning: {path} can't be drawn: {in_one_line(error)}", file=sys.stderr)
    return False
