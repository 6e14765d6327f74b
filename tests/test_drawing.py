"""Pictures: whatever a user has set for matplotlib, wherever they can't be written, and in any script."""

import os
import subprocess
from pathlib import Path

from common import LeNet

import matplotlib.image
import pytest
import torch
from conftest import ROOT, run_command
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

import inspect_weights
from cifar10lab.files.pictures import FONTS, default_style, png, write_picture
from cifar10lab.results.loss_plot import draw_losses

RECORD = {
    "experiment": "my model",
    "config": {"model": "LeNet", "lr": 0.1, "label_smoothing": 0.0},
    "dataset": {"name": "cifar10"},
    "history": {name: [1.0, 2.0] for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy")}
    | {"epoch": [1, 2]},
    "steps": {"epoch": [0.5, 1.0], "train_loss": [2.0, 1.0]},
    "result": {name: 2 for name in ("final_test_accuracy", "best_test_accuracy", "best_epoch")}
    | {"best_epoch_chosen_on": "test"},
}


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


def test_a_run_draws_whatever_settings_there_are(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: No Such Font\n")
    settings = [f"MATPLOTLIBRC={tmp_path}/matplotlibrc"]
    script = ["python", ROOT / "original_version_model_multigpu.py", "--epochs", 1, "--output", tmp_path / "out"]
    done = run_command("env", *settings, *script, data_dir=data_dir)
    assert done.code == 0, done.err
    assert matplotlib.image.imread(tmp_path / "out" / "loss.png").shape[1] > 1000
    compare = ["python", ROOT / "compare_results.py", tmp_path / "out", "--output", tmp_path]
    done = run_command("env", *settings, *compare)
    assert done.code == 0, done.err
    assert matplotlib.image.imread(tmp_path / "comparison.png").shape[1] == 1660


def failing(*_: object) -> bytes:
    raise RuntimeError("no\nroom")


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loss.png"
    assert not write_picture(path, failing, 1)
    assert capfd.readouterr().err == f"warning: {path} can't be drawn: RuntimeError: no room\n"
    assert write_picture(path, draw_losses, RECORD, "") and path.is_file()


def test_a_dollar_sign_is_one(tmp_path: Path, inspect) -> None:
    path = tmp_path / "a $x_1 $ \\frac{ $$" / "model $.pth"
    path.parent.mkdir()
    torch.save(LeNet().state_dict(), path)
    code, _, err = inspect(path, "--against", path)
    assert (code, err) == (0, "")
    assert inspect(path)[::2] == (0, "")
    assert draw_losses(RECORD | {"experiment": "$my$ model $"}, "").startswith(b"\x89PNG")


# --- Other scripts


def make_font(path: Path, signs: str) -> None:
    """A font in which each of the signs is a filled triangle."""
    pen = TTGlyphPen(None)
    for i, point in enumerate([(0, 0), (1000, 0), (500, 1000)]):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    builder, names = FontBuilder(1000), [f"uni{ord(sign):04X}" for sign in signs]
    glyphs = {name: pen.glyph() for name in names} if len(names) == 1 else {}
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(sign): name for sign, name in zip(signs, names, strict=True)})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **glyphs})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in (".notdef", *names)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": FONTS[1], "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def titled(title: str) -> bytes:
    from matplotlib.figure import Figure

    with default_style():
        figure = Figure(figsize=(3, 2))
        figure.suptitle(title)
        return png(figure, 50)


SIGN = "\U00010a7f"  # of Old South Arabian, which hardly a machine has a font for


def test_signs_that_no_font_has_are_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn) -> None:
    assert titled(f"{SIGN} {SIGN} and {SIGN}").startswith(b"\x89PNG")
    err = capfd.readouterr().err
    assert err.startswith("warning: Glyph") and err.count("missing from font(s)") == 1 == err.count("\n"), err
    assert not recwarn.list


def test_signs_are_drawn_with_a_font_that_has_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.font_manager import fontManager

    boxes = titled(SIGN)
    capfd.readouterr()
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    make_font(tmp_path / "triangles.ttf", SIGN)
    fontManager.addfont(tmp_path / "triangles.ttf")
    assert titled(SIGN) != boxes
    assert capfd.readouterr().err == ""


def test_a_script_named_in_chinese(run, copied: Path, data_dir: Path) -> None:
    script = (copied / "dropout_regularization.py").read_text().replace('"dropout_regularization"', '"我的模型"')
    (copied / "我的模型.py").write_text(script)
    done = run(copied / "我的模型.py", "--epochs", 1, "--output", copied / "结果", "--data-dir", data_dir)
    assert done.code == 0, done.err
    assert done.err == "" or (done.err.startswith("warning: Glyph") and len(done.err.splitlines()) == 1)
    assert (copied / "结果" / "loss.png").is_file()


# --- Where nothing can be written


@pytest.fixture
def read_only(tmp_path: Path):
    """A read-only file system with a LeNet in it."""
    place = tmp_path / "read only"
    place.mkdir()
    torch.save(LeNet().state_dict(), place / "model.pth")
    if subprocess.run(["mount", "--bind", "-o", "ro", place, place], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_on_a_read_only_file_system_everything_is_printed(inspect, read_only: Path, tmp_path: Path) -> None:
    code, out, err = inspect(read_only, "--evaluate")
    assert code == 0, err
    assert "fc1.weight" in out and "test accuracy" in out and "wrote" not in out
    pictures = ["weights.png", "confusion.png", "mistakes.png"]
    expected = [f"warning: {read_only / name} can't be written: Read-only file system" for name in pictures]
    assert [line for line in err.splitlines() if "can't be written" in line] == expected
    code, out, err = inspect(read_only, "--evaluate", "--output", tmp_path / "new" / "folder")
    assert code == 0 and "can't be written" not in err
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(pictures)


def test_a_name_of_244_characters(inspect, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 244)
    folder.mkdir()
    torch.save(LeNet().state_dict(), folder / "model.pth")
    code, out, err = inspect(folder, "--against", folder, "--evaluate")
    assert code == 0, err
    assert "test accuracy" in out and (folder / "confusion.png").is_file()
    assert err.count("can't be written: ") == err.count("can't be written: File name too long") == 1


def test_inspecting_the_references_runs_changes_nothing_in_them(inspect, tmp_path: Path) -> None:
    reference = ROOT / "modelset" / "reference"
    runs = [path.parent for path in reference.glob("**/model.pth")]
    assert runs
    for run in runs:
        assert inspect_weights.picture_folder(run / "model.pth", None) == Path()
        assert inspect_weights.picture_folder(run / "model.pth", tmp_path) == tmp_path
    own = tmp_path / "own" / "model.pth"
    assert inspect_weights.picture_folder(own, None) == own.parent


def test_also_where_modelset_is_a_link(copied: Path, lenet: Path) -> None:
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
