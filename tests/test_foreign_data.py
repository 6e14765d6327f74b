"""Data folders as people have them: with junk among the images, archives of other names, and other data sets."""

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from conftest import ROOT, make_image_folder, run_command
from test_data import archive, check_official, official_files, tar_file  # noqa: F401

from cifar10lab.data.loading import LARGEST_ARCHIVE, DataUnavailable, download, load_cifar10, load_data
from cifar10lab.terminal.errors import UserError

JUNK = [
    "cat/.ipynb_checkpoints/0000-checkpoint.png",  # notebooks
    "cat/._0000.png",  # macOS on drives of other systems
    "cat/.nfs000000001.png",
    "cat/__MACOSX/0000.png",  # archives made on macOS
    "cat/__MACOSX/._0000.png",
    "cat/@eaDir/0000.png/SYNOPHOTO_THUMB_M.png",  # a Synology drive
    "cat/#recycle/0000.png",
    "cat/$RECYCLE.BIN/0000.png",
    "cat/lost+found/0000.png",
    "cat/~0000.png",
    "cat/.Trash-1000/files/0000.png",
    "cat/Thumbs.db",
    "cat/desktop.ini",
    "cat/0000.png~",
    "cat/.DS_Store",
    "__MACOSX/cat/._0000.png",  # beside the classes
    "@eaDir/cat/0000.png",
    ".Trashes/0000.png",
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


@pytest.mark.parametrize(
    "name",
    ["cifar10.tar.gz", "cifar-10-batches-py.tar.gz", "data.tgz", "deeper/my copy.tar", "CIFAR10.tar.bz2", "a.tar.xz"],
)
def test_the_official_archive_under_another_name(tmp_path: Path, archive: bytes, name: str) -> None:  # noqa: F811
    (tmp_path / name).parent.mkdir(exist_ok=True)
    kind = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".xz": "xz"}.get(Path(name).suffix, "")
    (tmp_path / name).write_bytes(tar_file(official_files(), kind))
    check_official(load_cifar10(tmp_path))


def test_other_archives_are_no_hindrance(tmp_path: Path, archive: bytes) -> None:  # noqa: F811
    (tmp_path / "a.tar.gz").write_bytes(b"damaged")
    (tmp_path / "b.tar").write_bytes(tar_file({"notes.txt": b"x"}, ""))
    with (tmp_path / "c.tar").open("wb") as file:
        file.truncate(LARGEST_ARCHIVE + 1)  # takes no room on the disk, and is not read
    (tmp_path / "d.tar.gz").write_bytes(archive)
    check_official(load_cifar10(tmp_path))


def write(name: str, content: bytes = b"x") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return make


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return content.getvalue()


def keras(folder: Path) -> None:
    np.savez(folder / "cifar10.npz", x_train=np.zeros((1, 32, 32, 3), np.uint8))


def cifar100_itself(folder: Path) -> None:
    for name in ("train", "test", "meta"):
        write(name)(folder)


CLASS_FILES = [
    f"cifar10/train/{name}/1.png"
    for name in ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
]
REFUSED = {
    "CIFAR-100": (write("cifar-100-python/train"), "cifar-100-python is CIFAR-100, another data set"),
    "CIFAR-100, deeper": (write("x/cifar-100-python/train"), "cifar-100-python is CIFAR-100"),
    "CIFAR-100 itself": (cifar100_itself, "is CIFAR-100, another data set"),
    "CIFAR-100's archive": (write("cifar-100-python.tar.gz"), "cifar-100-python.tar.gz is CIFAR-100"),
    "CIFAR-100's archive, renamed": (
        write("data.tar", tar_file({"../cifar-100-python/train": b"x"}, "")),
        "data.tar is CIFAR-100",
    ),
    "CIFAR-100's binary version": (write("cifar-100-binary/train.bin"), "CIFAR-100"),
    "a .zip of the batches": (
        write("archive.zip", zipped("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch")),
        "archive.zip is CIFAR-10 in a .zip, which is not read: unpack it",
    ),
    "a .zip of an image folder": (write("images.zip", zipped(*CLASS_FILES)), "unpack it"),
    "Keras's": (keras, "cifar10.npz is of NumPy's arrays, as Keras's"),
    "Keras's, with another name": (write("CIFAR-10.npz"), "CIFAR-10.npz is of NumPy's arrays"),
    "HDF5": (write("cifar10.h5"), "HDF5"),
    "TensorFlow's": (write("cifar10/3.0.2/cifar10-train.tfrecord-00000-of-00001"), "is of TensorFlow's version"),
    "the binary version in an archive, renamed": (
        write("mine.tar", tar_file({"../cifar-10-batches-bin/data_batch_1.bin": b"x"}, "")),
        "mine.tar is CIFAR-10's binary version",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_data_sets_and_copies_are_named_before_anything_is_downloaded(
    tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, message = REFUSED[what]
    make(tmp_path)
    for dataset in ("cifar10", "auto"):
        with pytest.raises(UserError) as error:
            load_data(dataset, tmp_path)
        assert not isinstance(error.value, DataUnavailable)
        assert message in str(error.value) and "\n" not in str(error.value)
    assert "downloading" not in capfd.readouterr().err


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
