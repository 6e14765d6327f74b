"""Data folders as people have them: with junk among the images, in hidden folders, named with a tilde."""

import os
import shutil
from pathlib import Path

import matplotlib
import pytest
import torch
from conftest import ROOT, make_image_folder, run_command

from cifar10lab.data.loading import DataUnavailable, download, load_cifar10

JUNK = [
    "cat/.ipynb_checkpoints/0000-checkpoint.png",  # notebooks
    "cat/._0000.png",  # macOS on drives of other systems
    "cat/__MACOSX/0000.png",  # archives made on macOS
    "cat/@eaDir/0000.png/SYNOPHOTO_THUMB_M.png",  # a Synology drive
    "cat/#recycle/0000.png",
    "cat/$RECYCLE.BIN/0000.png",
    "cat/~0000.png",
    "cat/Thumbs.db",
    "cat/0000.png~",
    "__MACOSX/cat/._0000.png",  # beside the classes
    "lost+found/0000.png",
]


@pytest.mark.parametrize("name", JUNK)
def test_what_systems_and_programs_leave_is_no_image(own_data_dir: Path, name: str) -> None:
    before = load_cifar10(own_data_dir)
    written = (own_data_dir / "cifar10-cache.npz").stat().st_mtime_ns
    path = own_data_dir / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(own_data_dir / "train" / "dog" / "0001.png", path)
    after = load_cifar10(own_data_dir)
    assert torch.equal(after.train_images, before.train_images)
    if name.startswith("cat/") and not name.endswith((".db", ".ini", "~")):
        assert (own_data_dir / "cifar10-cache.npz").stat().st_mtime_ns == written  # nothing of the data has changed


def test_a_data_folder_in_a_hidden_folder_has_its_images(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / ".cache" / "~mine" / "cifar10", 1, 1)
    assert len(load_cifar10(folder).train_labels) == 10


def test_an_image_in_a_deeper_folder_counts_and_renews_the_cache(own_data_dir: Path) -> None:
    load_cifar10(own_data_dir)
    (own_data_dir / "train" / "cat" / "more").mkdir()
    shutil.copy(own_data_dir / "train" / "cat" / "0001.png", own_data_dir / "train" / "cat" / "more" / "1.png")
    assert len(load_cifar10(own_data_dir).train_labels) == 21


def test_a_cache_whose_images_are_gone_is_not_taken_for_keras_file(
    own_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_cifar10(own_data_dir)
    for split in ("train", "test"):
        shutil.rmtree(own_data_dir / split)
    monkeypatch.setattr(download, "__defaults__", ((), 1))  # no mirrors
    with pytest.raises(DataUnavailable):
        load_cifar10(own_data_dir)


def test_a_tilde_is_the_home_folder(tmp_path: Path) -> None:
    make_image_folder(tmp_path / "images", 10, 4)
    script = ["python", ROOT / "original_version_model_multigpu.py", "--epochs=1", "--output=~/out ~ put"]
    home = ["env", f"HOME={tmp_path}", f"MPLCONFIGDIR={matplotlib.get_cachedir()}"]  # where it knows the fonts
    for given in (["CIFAR10_DIR=~/images", *script], [*script, "--data-dir=~/images"]):
        done = run_command(*home, *given, cwd=tmp_path)
        assert done.code == 0, done.err
        assert "cifar10 (image folder)" in done.out and f"results in {tmp_path}/out ~ put\n" in done.out
        assert not (tmp_path / "~").exists()
    done = run_command(*home, "python", ROOT / "inspect_weights.py", "~/out ~ put", "--output=~/a")
    assert done.code == 0 and os.listdir(tmp_path / "a") == ["weights.png"], done.err


def test_pillow_is_required_as_new_as_it_is_needed() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert "pillow>=10.1" in lines  # `has_transparency_data`
