"""Pictures: whatever a user has set for matplotlib, wherever they can't be written, and in any script."""

import dataclasses
import json
import os
from pathlib import Path

from common import LeNet

import matplotlib.image
import torch
from conftest import ROOT, run_command
from matplotlib.font_manager import fontManager

from cifar10lab.files.pictures import FONTS, png, write_picture
from cifar10lab.results.history import draw_losses

RECORD = json.loads((ROOT / "modelset/reference/original_version_model/loss.json").read_text())


def test_settings_of_the_user_change_no_picture_and_stay() -> None:
    plain, theirs = png(draw_losses, RECORD, ""), {"text.usetex": True, "font.family": ["No Such Font"]}
    theirs |= {
        "font.size": 30.0,
        "axes.facecolor": "black",
        "axes.spines.top": False,
        "savefig.bbox": "tight",
        "savefig.dpi": 20.0,
    }
    with matplotlib.rc_context(theirs):
        assert png(draw_losses, RECORD, "") == plain
        assert {name: matplotlib.rcParams[name] for name in theirs} == theirs


def test_a_matplotlibrc_of_the_user_stops_no_script(reference, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: No Such Font\n")
    run, setting = reference("dropout_regularization", "--epochs", 1), f"MATPLOTLIBRC={tmp_path}/matplotlibrc"
    done = run_command("env", setting, "python", ROOT / "compare_results.py", run, "--output", tmp_path)
    assert done.code == 0, done.err
    assert matplotlib.image.imread(tmp_path / "comparison.png").shape[1] == 1660


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path: Path, capfd) -> None:
    assert not write_picture(tmp_path / "loss.png", lambda _: exec("raise RuntimeError('no\\nroom')"))
    assert capfd.readouterr().err == f"warning: {tmp_path / 'loss.png'} can't be drawn: RuntimeError: no room\n"


def test_a_dollar_sign_is_one(tmp_path: Path, inspect) -> None:
    path = tmp_path / "a $x_1 $ \\frac{ $$" / "model $.pth"
    path.parent.mkdir()
    torch.save(LeNet().state_dict(), path)
    assert inspect(path, "--against", path, "--output", tmp_path / "new" / "folder")[::2] == (0, "")
    assert os.listdir(tmp_path / "new" / "folder") == ["weights-against-model $.png"]


def test_signs_that_no_font_has_are_said_once_and_others_are_drawn(capfd, recwarn, monkeypatch) -> None:
    record = RECORD | {"experiment": "\ue000 \ue000"}  # private: of matplotlib's own fonts, one has it
    boxes, err = png(draw_losses, record, ""), capfd.readouterr().err
    assert err.startswith("warning: Glyph") and err.count("missing from") == 1 == err.count("\n"), err
    assert not recwarn.list
    (theirs,) = (font for font in fontManager.ttflist if Path(font.fname).name == "STIXNonUni.ttf")
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist, dataclasses.replace(theirs, name=FONTS[1])])
    assert png(draw_losses, record, "") != boxes
    assert capfd.readouterr().err == ""


def test_where_nothing_can_be_written_everything_is_printed(inspect, lenet: Path) -> None:
    output = lenet / "model.pth" / "in a file"
    code, out, err = inspect(lenet, "--evaluate", "--output", output)
    assert code == 0, err
    assert "fc1.weight" in out and "test accuracy" in out and "wrote" not in out
    pictures = ("weights.png", "confusion.png", "mistakes.png")
    assert err.splitlines() == [f"warning: {output / name} can't be written: Not a directory" for name in pictures]


def test_inspecting_the_references_runs_changes_nothing_in_them_also_where_modelset_is_a_link(
    copied: Path, lenet: Path
) -> None:
    (copied / "modelset").rename(copied / "elsewhere")
    (copied / "modelset").symlink_to(copied / "elsewhere")
    run_of_the_reference = lenet.rename(copied / "elsewhere" / "reference")
    before = set(run_of_the_reference.iterdir())
    assert run_command("python", "inspect_weights.py", "modelset/reference", cwd=copied).code == 0
    assert set(run_of_the_reference.iterdir()) == before and (copied / "weights.png").is_file()
