"""Reading CIFAR-10: each form that people have it in, with junk beside it; downloads; what can be wrong with each."""

import dataclasses
import hashlib
import http.server
import io
import os
import pickle
import runpy
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import common

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command, make_image_folder, synthetic_images
from PIL import Image
from torchvision.datasets import CIFAR10

from cifar10lab.data import loading
from cifar10lab.data.loading import CLASSES, DataUnavailable, load_cifar10, load_data
from cifar10lab.inspection.photos import load_test_arrays
from cifar10lab.terminal.errors import UserError
from original_version_model import SETTINGS as LENET


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def official_files() -> dict[str, bytes]:
    """Five training batches and one test batch of 10 images each, in the official format."""
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    contents = {name: {"data": noise(i, 10, 3072), "labels": list(range(10))} for i, name in enumerate(names)}
    contents["batches.meta"] = {"label_names": list(CLASSES)}
    return {name: pickle.dumps(content) for name, content in contents.items()}


def tar_file(files: dict[str, bytes], compression: str = "gz", link: str = "") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w:{compression}") as tar:
        for name, part in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size, member.linkname = len(part), link
            member.type = tarfile.SYMTYPE if link else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO(part))
    return content.getvalue()


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small archive, whose checksums torchvision is told are the official ones."""
    files = official_files()
    content = tar_file(files)
    *checksums, (_, meta) = [[name, hashlib.md5(part).hexdigest()] for name, part in files.items()]
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", checksums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", checksums[5:])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    return content


def check_official(data: loading.Data) -> None:
    assert data.train_images.shape == (50, 3, 32, 32) and data.test_images.shape == (10, 3, 32, 32)
    assert np.array_equal(data.train_images[10:20].reshape(10, -1), noise(1, 10, 3072))
    assert np.array_equal(data.test_images.reshape(10, -1), noise(5, 10, 3072))
    assert data.test_labels.tolist() == list(range(10))


# --- What makes data of an image folder: `make(source, target)`, where `source` may be spoilt


def write(name: str, content: bytes = b"x") -> Callable[[Path, Path], None]:
    def make(source: Path, target: Path) -> None:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)

    return make


def put_official_files(folder: Path) -> None:
    for name, content in official_files().items():
        write(name, content)(folder, folder)


def spoilt(spoil: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    def make(source: Path, target: Path) -> None:
        source.rename(target)
        spoil(target)

    return make


def save(array: np.ndarray, mode: str | None = None, name: str = "0001.png") -> Callable[[Path], None]:
    return lambda folder: Image.fromarray(array).convert(mode).save(folder / "train" / "cat" / name)


def write_parquet(source: Path, target: Path, column: str = "img", parts: int = 1) -> None:
    """An image folder as Hugging Face keeps it, in `parts` files a split."""
    for split in ("train", "test"):
        paths = sorted((source / split).glob("*/*.png"), key=lambda path: path.name)  # not by class
        cells = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        table = pd.DataFrame({column: cells, "label": [CLASSES.index(path.parent.name) for path in paths]})
        for i, rows in enumerate(np.array_split(np.arange(len(table)), parts)):
            write(f"{split}-{i:05}-of-{parts:05}.parquet", table.iloc[rows].to_parquet())(source, target)


def write_hub_cache(source: Path, target: Path) -> None:
    """As Hugging Face's hub caches them: links to files that are called by their hashes."""
    write_parquet(source, target / "blobs")
    (target / "snapshots/0b2714/plain_text").mkdir(parents=True)
    for i, path in enumerate(sorted((target / "blobs").iterdir())):
        path.rename(path.with_name(f"hash{i}"))
        (target / "snapshots/0b2714/plain_text" / path.name).symlink_to(f"../../../blobs/hash{i}")


def arrays(channels_first: bool = False, **changes: np.ndarray) -> Callable[[Path, Path], None]:
    def make(source: Path, target: Path) -> None:
        data, contents = load_cifar10(source), {}
        for split in ("train", "test"):
            images, labels = getattr(data, f"{split}_images").flip(0), getattr(data, f"{split}_labels").flip(0)
            contents[f"x_{split}"] = (images if channels_first else images.permute(0, 2, 3, 1)).numpy()
            contents[f"y_{split}"] = (labels if channels_first else labels.view(-1, 1).byte()).numpy()
        target.mkdir()
        np.savez(target / "cifar10.npz", **contents | changes)

    return make


def parquet(content: bytes | dict) -> Callable[[Path, Path], None]:
    content = content if isinstance(content, bytes) else pd.DataFrame(content).to_parquet()
    return write("train-00000-of-00001.parquet", content)


def packed(kind: str, inside: str, *damaged: str) -> Callable[[Path, Path], None]:
    def make(source: Path, target: Path) -> None:
        unpacked = target.with_name("unpacked")
        shutil.copytree(source, unpacked / inside)
        for name in damaged:
            os.truncate(unpacked / inside / name, 200)
        shutil.make_archive(str(target / "archive"), kind, unpacked)

    return make


# --- What can be read


def test_image_folder_gives_uint8_images_and_int64_labels_from_any_lossless_format(own_data_dir: Path) -> None:
    for i, path in enumerate(sorted(own_data_dir.glob("*/*/*.png"))):
        image, kind = Image.open(path).copy(), ("webp", "PNG", "bmp")[i % 3]
        path.unlink()
        image.save(path.with_suffix(f".{kind}"), **({"lossless": True} if kind == "webp" else {}))
    data = load_cifar10(own_data_dir)
    assert (data.name, data.source) == ("cifar10", "image folder")
    assert data.train_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    images, labels, *_ = synthetic_images()
    drawn = [images[labels == label][:2] for label in range(10)]
    assert np.array_equal(data.train_images, np.concatenate(drawn))


def test_grey_and_opaque_images_are_converted(own_data_dir: Path) -> None:
    grey, colours = noise(3, 32, 32), noise(3, 32, 32, 3)
    images = {None: grey, "LA": grey, "RGBA": colours, "P": grey // 128 * 255}
    for i, (mode, array) in enumerate(images.items()):
        save(array, mode, f"{i + 1:04}.png")(own_data_dir)
    for mode, array, read in zip(images, images.values(), load_cifar10(own_data_dir).train_images[7:11], strict=True):
        rgb = array if array.ndim == 3 else np.dstack([array] * 3)
        assert np.array_equal(read.permute(1, 2, 0), rgb), mode


def test_the_tutorials_class_names(own_data_dir: Path) -> None:
    before = load_cifar10(own_data_dir)
    for split in ("train", "test"):
        (own_data_dir / split / "airplane").rename(own_data_dir / split / "plane")
        (own_data_dir / split / "automobile").rename(own_data_dir / split / "car")
    assert load_cifar10(own_data_dir).checksum == before.checksum


def test_links_spaces_and_other_letters_in_names_and_hidden_folders(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / ".cache" / "~mine" / "Bilder für süße 小猫", 1, 1)
    (folder / "train" / "cat" / "0000.png").rename(folder / "train" / "cat" / "кот 1.png")
    (tmp_path / "link to data").symlink_to(folder, target_is_directory=True)
    assert len(load_cifar10(tmp_path / "link to data").train_labels) == 10


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CIFAR10_DIR", "~/images")
    assert runpy.run_path(loading.__file__)["DATA_DIR"] == tmp_path / "images"
    settings = common.checked(dataclasses.replace(LENET, data_dir="~/images", output="~/out ~ put"))
    assert settings.data_dir == tmp_path / "images" and settings.output == tmp_path / "out ~ put"
    make_image_folder(tmp_path / "images", 1, 1)
    assert len(load_cifar10(Path("~/images")).train_labels) == 10


@pytest.mark.parametrize("place", ["cifar-10-batches-py", "my copy", "a/b/cifar-10-batches-py"])
def test_official_files_are_known_by_their_content(tmp_path: Path, archive: bytes, place: str) -> None:
    put_official_files(tmp_path / "data" / place)
    for folder in (tmp_path / "data" / place, tmp_path / "data"):
        check_official(load_cifar10(folder))


ARCHIVES = {loading.ARCHIVE: "gz", "data.tgz": "gz", "deeper/my copy (1).tar": "", "a.tar.xz": "xz", "A.tar.bz2": "bz2"}


@pytest.mark.parametrize("name", ARCHIVES)
def test_any_archive_of_the_official_files(tmp_path: Path, archive: bytes, name: str) -> None:
    write(name, tar_file(official_files(), ARCHIVES[name]))(tmp_path, tmp_path)
    for _ in range(2):
        check_official(load_cifar10(tmp_path))


FORMS = {  # what makes it of an image folder, and how it is called
    "three folders down": (lambda source, target: shutil.copytree(source, target / "a/b/c"), "image folder in a/b/c"),
    "a zip": (packed("zip", "cifar10/cifar10"), "archive.zip"),
    "a tgz": (packed("gztar", "cifar10"), "archive.tar.gz"),
    "Parquet in parts": (lambda source, target: write_parquet(source, target / "a", "image", 3), "Parquet in a"),
    "the hub's cache": (write_hub_cache, "Parquet in snapshots/0b2714/plain_text"),
    "arrays": (arrays(), "cifar10.npz"),
    "arrays, channels first": (arrays(channels_first=True), "cifar10.npz"),
}


def pairs(images: torch.Tensor, labels: torch.Tensor) -> list[tuple[bytes, int]]:
    return [(image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_the_same_images_in_an_order_of_its_own(data_dir: Path, tmp_path: Path, form: str) -> None:
    make, source = FORMS[form]
    make(data_dir, tmp_path / "data")
    first, again, folder = (load_cifar10(place) for place in (tmp_path / "data", tmp_path / "data", data_dir))
    assert first.source == again.source == source and (tmp_path / "data" / "cifar10-cache.npz").is_file()
    assert first.checksum == again.checksum and first.train_labels.dtype == torch.int64
    train, same = pairs(first.train_images, first.train_labels), pairs(folder.train_images, folder.train_labels)
    assert sorted(train) == sorted(same) and (train == same) == (form in list(FORMS)[:3])
    assert (train == same[::-1]) == form.startswith("arrays") and (train == same) == (first.checksum == folder.checksum)
    test = pairs(first.test_images, first.test_labels)
    assert sorted(test) == sorted(pairs(folder.test_images, folder.test_labels))


def test_the_test_images_alone_are_enough_where_nothing_is_trained(own_data_dir: Path) -> None:
    whole = load_cifar10(own_data_dir)
    shutil.rmtree(own_data_dir / "train")
    for _ in range(2):  # from the files, and from the cache
        data = load_cifar10(own_data_dir, test_only=True)
        assert torch.equal(data.test_images, whole.test_images) and data.train_images.shape == (0, 3, 32, 32)
        with pytest.raises(UserError, match="no train images of airplane"):
            load_cifar10(own_data_dir)


def test_wrong_arrays_of_other_test_images(tmp_path: Path) -> None:
    images, labels = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(images, noise(1, 15, 32, 32, 3))
    with pytest.raises(UserError, match=r"y\.npy can't be read: No such file"):
        load_test_arrays(images, labels)
    np.save(labels, np.arange(9, dtype=np.int32))
    with pytest.raises(UserError, match=r"x\.npy with .*y\.npy has .* labels int32 \(9,\)"):
        load_test_arrays(images, labels)


def test_the_nearest_form_is_read_whatever_lies_beside_it(own_data_dir: Path, tmp_path: Path, archive: bytes) -> None:
    write("cifar-10-batches-bin/data_batch_1.bin")(tmp_path, own_data_dir)
    make_image_folder(own_data_dir / "deeper", 1, 1)
    assert load_cifar10(own_data_dir).source == "image folder"
    other = tmp_path / "other"
    put_official_files(other / "cifar-10-batches-py")
    contents = {"train/1.png": b"x", "train-0.parquet": b"x", "a.tar.gz": b"damaged", "c.tar.gz": archive}
    for name, content in (contents | {"b.tar": tar_file({"notes.txt": b"x"}, "")}).items():
        write(name, content)(tmp_path, other)
    assert load_cifar10(other).source == "cifar-10-batches-py"
    shutil.rmtree(other / "cifar-10-batches-py")
    (other / "train-0.parquet").unlink()
    assert load_cifar10(other).source == "c.tar.gz"


# --- The cache, and what else lies in the folder


JUNK = (
    ".ipynb_checkpoints/0000-checkpoint.png",  # notebooks
    "._0000.png",  # macOS on drives of other systems
    "__MACOSX/0000.png",  # archives made on macOS
    "@eaDir/0000.png/SYNOPHOTO_THUMB_M.png",  # a Synology drive
    "#recycle/0000.png",
    "$RECYCLE.BIN/0000.png",
    "~0000.png",
    "../lost+found/0000.png",  # beside the classes
)


def test_the_cache_is_read_until_an_image_changes(own_data_dir: Path) -> None:
    first, cache, cats = load_cifar10(own_data_dir), own_data_dir / "cifar10-cache.npz", own_data_dir / "train" / "cat"
    written, image = cache.stat().st_mtime_ns, (cats / "0001.png").read_bytes()
    for name in JUNK:
        write(name, image)(own_data_dir, cats)
    assert load_cifar10(own_data_dir).checksum == first.checksum
    assert cache.stat().st_mtime_ns == written, "junk is no image"
    for name in ("Thumbs.db", "0000.png~"):
        write(name, image)(own_data_dir, cats)
    assert load_cifar10(own_data_dir).checksum == first.checksum
    write("more/1.png", image)(own_data_dir, cats)
    assert len(load_cifar10(own_data_dir).train_labels) == 21, "an image in a deeper folder counts"
    save(noise(0, 32, 32, 3))(own_data_dir)
    assert np.array_equal(load_cifar10(own_data_dir).train_images[7].permute(1, 2, 0), noise(0, 32, 32, 3))


@pytest.mark.parametrize("damage", ["cut short", "a pickle", "a flipped bit"])
def test_a_damaged_cache_is_built_again_and_never_executed(own_data_dir: Path, tmp_path: Path, damage: str) -> None:
    first = load_cifar10(own_data_dir)
    cache = own_data_dir / "cifar10-cache.npz"
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    contents = {"a flipped bit": content, "cut short": content[:1000]}
    cache.write_bytes(contents.get(damage, pickle.dumps(Command(f"touch {tmp_path}/executed"))))
    for _ in range(2):
        assert torch.equal(load_cifar10(own_data_dir).train_images, first.train_images)
    assert not (tmp_path / "executed").exists()


def test_a_folder_that_cannot_be_written_is_read_without_a_cache(
    own_data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Folders in the places of lock and cache fail for root, too, as a read-only disk does.
    (own_data_dir / ".lock").mkdir()
    (own_data_dir / "cifar10-cache.npz").mkdir()
    assert len(load_cifar10(own_data_dir).train_labels) == 20
    assert "going on without a cache: " in capfd.readouterr().err


# --- What can't be read


UNREADABLE = ", but no CIFAR-10 that can be read: train/<class>/"
REFUSED = {
    "a class is missing": (spoilt(lambda folder: shutil.rmtree(folder / "train/ship")), "no train images of ship$"),
    "no test images": (spoilt(lambda folder: shutil.rmtree(folder / "test")), "no test images of airplane, automobile"),
    "an unknown class": (spoilt(lambda folder: (folder / "train/zebra").mkdir()), "truck, zebra: expected a folder"),
    "a class twice": (spoilt(lambda folder: (folder / "train/car").mkdir()), "car, .*: expected a folder for each of"),
    "a link to nowhere": (spoilt(lambda folder: (folder / "train/dog/a.png").symlink_to("b")), "dog/a.png can't be r"),
    "a file that is no image": (spoilt(lambda folder: (folder / "train/cat/0.png").write_text("hello")), "cat/0.png c"),
    "16 bits per pixel": (spoilt(save(noise(0, 32, 32).astype(np.uint16) * 200)), "cat/0001.png has 32x32 pixels"),
    "larger than 32x32": (spoilt(save(noise(0, 64, 48, 3))), "48x64"),
    "transparent pixels": (spoilt(save(noise(1, 32, 32, 4))), "transparent"),
    "a damaged image in a zip": (packed("zip", "a", "train/cat/0001.png"), r"e\.zip can't be read: .*cat/0001\.png"),
    "half an archive": (write("a.tgz", tar_file({"data_batch_1": noise(0, 9999).data})[:-99]), "Compressed file end"),
    "wrong batches": (write("a.tgz", tar_file({"data_batch_1": b"x"})), "/cifar-10-batches-py fails its MD5 check"),
    "an archive that leaves its folder": (write("a.tgz", tar_file({"../../data_batch_1": b""})), "outside the destin"),
    "an archive of links": (write("a.tgz", tar_file({"data_batch_1": b""}, link="/etc/passwd")), "read: .* absolute"),
    "no archive": (write("a.tgz", b"hello"), f"has a.tgz{UNREADABLE}"),
    "a pointer to a file that was not fetched": (parquet(b"version https://git-lfs"), r"001\.parquet can't be read: "),
    "Parquet of CIFAR-100": (parquet({"img": [], "fine_label": []}), "has the columns img, fine_label: expected label"),
    "Parquet without images": (parquet({"img": [{"bytes": b"x"}], "label": [1]}), r"001\.parquet, row 0 can't be read"),
    "floating point": (arrays(x_test=np.ones((10, 32, 32, 3))), "images float64"),
    "other labels": (arrays(y_test=np.arange(1, 11)), "expected .* whole numbers from 0 to 9"),
    "fewer labels": (arrays(y_test=np.arange(9)), r"labels int64 \(9,\)"),
    "objects": (arrays(y_test=np.array([{}])), "Object arrays cannot be loaded"),
    "other arrays": (lambda _, folder: (folder.mkdir(), np.savez(folder / "a.npz", x=1)), f"has a.npz{UNREADABLE}"),
    "four folders deeper": (lambda source, target: shutil.copytree(source, target / "1/2/3/4"), f"has 1{UNREADABLE}"),
    "the binary version": (write("a.tar", tar_file({"data_batch_1.bin": b"x"}, "")), f"has a.tar{UNREADABLE}"),
    "CIFAR-100": (write("cifar-100-python/train"), f"has cifar-100-python{UNREADABLE}"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_anything_else_is_refused_with_the_reason_and_nothing_is_downloaded(
    own_data_dir: Path, tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, message = REFUSED[what]
    make(own_data_dir, tmp_path / "refused")
    for dataset in ("cifar10", "auto"):
        with pytest.raises(UserError, match=message) as error:
            load_data(dataset, tmp_path / "refused")
        assert not isinstance(error.value, DataUnavailable) and "\n" not in str(error.value)
    assert "downloading" not in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "refused", "unpacked"}


def test_parquet_without_pyarrow_says_what_to_install(own_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(own_data_dir, own_data_dir.parent / "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"parquet can't be read: .*pyarrow is required .*install"):
        load_cifar10(own_data_dir.parent / "parquet")


# --- Downloads


@pytest.fixture
def server(archive: bytes) -> Iterator[str]:
    """A web server whose paths behave like mirrors do: good, missing, corrupt, cut short, silent, stalled."""

    class Handler(http.server.BaseHTTPRequestHandler):
        log_message = print

        def do_GET(self) -> None:
            if self.path == "/silent":
                return time.sleep(3)
            self.send_response(404 if self.path == "/missing" else 200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            contents = {"/corrupt": archive[:-1] + b"x", "/short": archive[:99], "/stalled": archive[:99]}
            self.wfile.write(contents.get(self.path, archive))
            if self.path == "/stalled":
                time.sleep(3)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_an_empty_folder_gets_the_archive_from_the_first_mirror_that_has_it(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [f"{server}/{path}" for path in ("missing", "corrupt", "short", "silent", "stalled")]
    # Empty it is with what a killed run left, and with the cache of images that are gone.
    for name in (f".cifar10-{loading.ARCHIVE}.tmp", ".somebody-elses.tmp", "cifar10-cache.npz"):
        write(name)(tmp_path, tmp_path)
    monkeypatch.setattr(loading.download, "__defaults__", (bad, 0.3))
    with pytest.raises(DataUnavailable) as error:
        load_cifar10(tmp_path)
    first, _, *tried, last = str(error.value).splitlines()
    assert first == f"CIFAR-10 is not in {tmp_path} and could not be downloaded." and "--data-dir" in last
    assert [line.split()[0] for line in tried] == bad
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".somebody-elses.tmp", "cifar10-cache.npz"}
    monkeypatch.setattr(loading.download, "__defaults__", ([*bad[:3], f"{server}/good"], 0.3))
    check_official(load_cifar10(tmp_path))


def test_the_stand_in_is_the_same_everywhere() -> None:
    train_images, train_labels, test_images, test_labels = synthetic_images()
    assert train_images.shape == (10_000, 3, 32, 32) and test_images.shape == (2_000, 3, 32, 32)
    assert train_images.dtype == np.uint8 and train_labels.dtype == np.int64
    assert np.bincount(np.concatenate([train_labels, test_labels])).tolist() == [1200] * 10
    assert train_labels[:12].tolist() == [8, 1, 2, 3, 4, 7, 7, 2, 4, 2, 8, 0]
    assert [train_images[0].mean(), test_images[-1].mean()] == pytest.approx([147.97, 134.20], abs=0.05)
