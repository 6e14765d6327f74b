"""Pictures: whatever a user has set for matplotlib, wherever they can't be written, and in any script."""

import dataclasses
import json
import os
from pathlib import Path

from common import LeNet

import matplotlib.image
import pytest
import torch
from conftest import ROOT, linux, run_command

from cifar10lab.files.pictures import FONTS, default_style, png, write_picture
from cifar10lab.results.history import draw_losses

RECORD = json.loads((ROOT / "modelset/reference/original_version_model/loss.json").read_text())


@pytest.fixture(scope="module")
def plain() -> bytes:
    return draw_losses(RECORD, "")


SETTINGS = {
    "LaTeX": {"text.usetex": True},
    "a font that isn't there": {"font.family": "No Such Font", "mathtext.fontset": "custom"},
    "a style": {"figure.facecolor": "black", "savefig.bbox": "tight", "axes.spines.top": False, "font.size": 30.0},
    "a dark background": {"axes.facecolor": "black", "text.color": "white", "savefig.dpi": 20},
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_of_the_user_change_no_picture_and_stay(plain: bytes, what: str) -> None:
    with matplotlib.rc_context(SETTINGS[what]):
        assert draw_losses(RECORD, "") == plain
        assert all(matplotlib.rcParams[name] in (value, [value]) for name, value in SETTINGS[what].items())


def test_a_matplotlibrc_of_the_user_stops_no_script(reference, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: No Such Font\n")
    run, setting = reference("dropout_regularization", "--epochs", 1), f"MATPLOTLIBRC={tmp_path}/matplotlibrc"
    done = run_command("env", setting, "python", ROOT / "compare_results.py", run, "--output", tmp_path)
    assert done.code == 0, done.err
    assert matplotlib.image.imread(tmp_path / "comparison.png").shape[1] == 1660


def failing(*_: object) -> bytes:
    raise RuntimeError("no\nroom")


def test_a_picture_that_cannot_be_drawn_or_written_is_a_warning(tmp_path: Path, capfd) -> None:
    path, too_long = tmp_path / "loss.png", tmp_path / ("x" * 252 + ".png")
    assert not write_picture(path, failing, 1) and not write_picture(too_long, draw_losses, RECORD, "")
    undrawn, unwritten = capfd.readouterr().err.splitlines()
    assert undrawn == f"warning: {path} can't be drawn: RuntimeError: no room"
    assert unwritten == f"warning: {too_long} can't be written: File name too long"
    assert write_picture(path, draw_losses, RECORD, "") and path.is_file()


def test_a_dollar_sign_is_one(tmp_path: Path, inspect) -> None:
    path = tmp_path / "a $x_1 $ \\frac{ $$" / "model $.pth"
    path.parent.mkdir()
    torch.save(LeNet().state_dict(), path)
    assert inspect(path, "--against", path, "--output", tmp_path / "new" / "folder")[::2] == (0, "")
    assert os.listdir(tmp_path / "new" / "folder") == ["weights-against-model $.png"]
    assert draw_losses(RECORD | {"experiment": "$my$ model $"}, "").startswith(b"\x89PNG")


# --- Fonts


def titled(title: str) -> bytes:
    from matplotlib.figure import Figure

    with default_style():
        figure = Figure(figsize=(3, 2))
        figure.suptitle(title)
        return png(figure, 50)


SIGN = "\ue000"  # private: of matplotlib's own fonts, one has it


def test_signs_that_no_font_has_are_said_once(capfd: pytest.CaptureFixture[str], recwarn) -> None:
    assert titled(f"{SIGN} {SIGN} and {SIGN}").startswith(b"\x89PNG")
    err = capfd.readouterr().err
    assert err.startswith("warning: Glyph") and err.count("missing from") == 1 == err.count("\n"), err
    assert not recwarn.list


def test_signs_are_drawn_with_a_font_that_has_them(capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.font_manager import fontManager

    boxes = titled(SIGN)
    capfd.readouterr()
    fonts = fontManager.ttflist
    (theirs,) = (
        font for font in fonts if font.name == "STIXNonUnicode" and (font.style, font.weight) == ("normal", 400)
    )
    monkeypatch.setattr(fontManager, "ttflist", [*fonts, dataclasses.replace(theirs, name=FONTS[1])])
    assert titled(SIGN) != boxes
    assert capfd.readouterr().err == ""


# --- Where nothing can be written


@linux
def test_where_nothing_can_be_written_everything_is_printed(inspect, lenet: Path) -> None:
    code, out, err = inspect(lenet, "--evaluate", "--output", "/proc/pictures")
    assert code == 0, err
    assert "fc1.weight" in out and "test accuracy" in out and "wrote" not in out
    pictures = ["weights.png", "confusion.png", "mistakes.png"]
    expected = [f"warning: /proc/pictures/{name} can't be written: No such file or directory" for name in pictures]
    assert err.splitlines() == expected


def test_inspecting_the_references_runs_changes_nothing_in_them_also_where_modelset_is_a_link(
    copied: Path, lenet: Path
) -> None:
    (copied / "modelset").rename(copied / "elsewhere")
    (copied / "modelset").symlink_to(copied / "elsewhere")
    run_of_the_reference = lenet.rename(copied / "elsewhere" / "reference")
    before = set(run_of_the_reference.iterdir())
    assert run_command("python", "inspect_weights.py", "modelset/reference", cwd=copied).code == 0
    assert set(run_of_the_reference.iterdir()) == before and (copied / "weights.png").is_file()


def test_git_ignores_pictures_in_the_current_folder() -> None:
    names = ["weights.png", "confusion.png", "mistakes.png", "classified.png", "weights-against-L2.png"]
    done = run_command("git", "check-ignore", *names, cwd=ROOT)
    if done.code == 128:
        pytest.skip("needs a git repository")
    assert done.out.split() == names
