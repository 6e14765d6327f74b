"""Pictures as PNG, drawn with matplotlib's own defaults, whatever its user has set."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cifar10lab.files.writing import write_file
from cifar10lab.terminal.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT = "DejaVu Sans"  # comes with matplotlib, and is its default
BOXES = "Last Resort"  # begins the name of the font that has every sign, as a box


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Within it, figures are made and saved as on a fresh machine, and a `$` in a text is a dollar sign.

    A matplotlibrc, a style or a backend of the user's may need LaTeX or a window, or fail in other ways.
    """
    import_matplotlib()
    import matplotlib.style

    with matplotlib.style.context(["default", {"text.parse_math": False}]):
        yield


def import_matplotlib() -> None:
    """Its import fails if the environment variable MPLBACKEND names a backend that isn't there."""
    if "matplotlib" in sys.modules or "MPLBACKEND" not in os.environ:
        return
    backend = os.environ.pop("MPLBACKEND")
    try:
        import matplotlib
    finally:
        os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG file, in `default_style`."""
    find_fonts(figure)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # `find_fonts` has said it, once
        figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def find_fonts(figure: Figure) -> None:
    """Give texts whose signs matplotlib's font lacks the fonts of this machine that have them; warn of the others."""
    from matplotlib.font_manager import fontManager, get_font
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    missing = {sign for text in texts for sign in text.get_text() if sign.isprintable()}
    families = []
    for font in sorted(fontManager.ttflist, key=lambda font: font.name != FONT):
        if not missing:
            break
        try:
            has = {sign for sign in missing if ord(sign) in get_font(font.fname).get_charmap()}
        except (OSError, RuntimeError):  # a font that is damaged, or gone
            continue
        if has and not font.name.startswith(BOXES):
            families.append(font.name)
            missing -= has
    if missing:
        listed = " ".join(sorted(missing))
        print(f"warning: no font of this machine has {listed} (boxes in the picture instead)", file=sys.stderr)
    if set(families) - {FONT}:
        for text in texts:
            text.set_fontfamily([FONT, *families])


def write_picture(path: Path, draw: Callable[..., bytes], *arguments: object) -> bool:
    """Write what `draw` draws of the arguments. What goes wrong is a warning: results don't depend on their picture."""
    try:
        write_file(path, draw(*arguments))
    except UserError as error:
        reason = str(error)
    except Exception as error:  # matplotlib and its fonts raise many kinds
        reason = f"{path} can't be drawn: {type(error).__name__}: {error}"
    else:
        return True
    print(f"warning: {' '.join(reason.split())}", file=sys.stderr)
    return False
