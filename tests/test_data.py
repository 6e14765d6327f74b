"""Reading CIFAR-10: each form that people have it in, downloads, and what can be wrong with each."""

import hashlib
import http.server
import io
import pickle
import resource
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command, make_image_folder, synthetic_images
from PIL import Image
from torchvision.datasets import CIFAR10

from cifar10lab.data import loading, synthetic
from cifar10lab.data.loading import CLASSES, DataUnavailable, load_cifar10, load_data, load_test_arrays
from cifar10lab.terminal.errors import UserError


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def official_files() -> dict[str, bytes]:
    """Five training batches and one test batch of 10 images each, in the official format."""
    files = {}
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        files[name] = pickle.dumps({"data": noise(i, 10, 3072), "labels": list(range(10))})
    files["batches.meta"] = pickle.dumps({"label_names": list(CLASSES)})
    return files


def tar_file(files: dict[str, bytes], compression: str = "gz") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w:{compression}") as tar:
        for name, part in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(part)
            tar.addfile(member, io.BytesIO(part))
    return content.getvalue()


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small archive, whose checksums torchvision is told are the official ones."""
    files = official_files()
    content = tar_file(files)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    checksums = [[name, md5(part)] for name, part in files.items()]
    monkeypatch.setattr(CIFAR10, "train_list", checksums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", checksums[5:6])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(files["batches.meta"])}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return content


def write(name: str, content: bytes = b"x") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return make


def put_official_files(folder: Path) -> Path:
    for name, content in official_files().items():
        write(f"cifar-10-batches-py/{name}", content)(folder)
    return folder


def check_official(data: loading.Data) -> None:
    assert data.train_images.shape == (50, 3, 32, 32) and data.test_images.shape == (10, 3, 32, 32)
    assert np.array_equal(data.train_images[10:20].reshape(10, -1), noise(1, 10, 3072))
    assert np.array_equal(data.test_images.reshape(10, -1), noise(5, 10, 3072))
    assert data.test_labels.tolist() == list(range(10))


# --- Image folders


def test_image_folder_gives_uint8_images_and_int64_labels(data_dir: Path) -> None:
    data = load_cifar10(data_dir)
    assert (data.name, data.source) == ("cifar10", "image folder")
    assert data.train_images.shape == (100, 3, 32, 32) and data.train_images.dtype == torch.uint8
    assert data.test_labels.tolist() == [label for label in range(10) for _ in range(4)]
    assert data.test_labels.dtype == torch.int64
    train_images, train_labels, *_ = synthetic_images()
    assert np.array_equal(data.train_images[:10], train_images[train_labels == 0][:10])


@pytest.mark.parametrize("kind", ["webp", "PNG", "bmp"])
def test_other_formats_give_the_same_pixels(own_data_dir: Path, kind: str) -> None:
    before = load_cifar10(own_data_dir).train_images
    for path in own_data_dir.glob("*/*/*.png"):
        image = Image.open(path).copy()
        path.unlink()
        image.save(path.with_suffix(f".{kind}"), **({"lossless": True} if kind == "webp" else {}))
    assert torch.equal(load_cifar10(own_data_dir).train_images, before)


def test_the_cache_spares_the_decoding_until_the_folder_changes(own_data_dir: Path) -> None:
    first = load_cifar10(own_data_dir)
    cache = own_data_dir / "cifar10-cache.npz"
    written = cache.stat().st_mtime_ns
    assert torch.equal(load_cifar10(own_data_dir).train_images, first.train_images)
    assert cache.stat().st_mtime_ns == written
    Image.fromarray(noise(0, 32, 32, 3)).save(own_data_dir / "train" / "cat" / "0000.png")
    changed = load_cifar10(own_data_dir)
    assert cache.stat().st_mtime_ns != written
    assert np.array_equal(changed.train_images[6].permute(1, 2, 0), noise(0, 32, 32, 3))


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


def save(array: np.ndarray, mode: str | None = None, name: str = "0001.png") -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        Image.fromarray(array).convert(mode).save(folder / "train" / "cat" / name)

    return spoil


def truncate(folder: Path) -> None:
    path = folder / "train" / "cat" / "0001.png"
    path.write_bytes(path.read_bytes()[:200])


TRANSPARENT = np.dstack([noise(1, 32, 32, 3), np.full((32, 32), 100, np.uint8)])
REFUSED = {
    "a class is missing": (lambda folder: shutil.rmtree(folder / "train" / "ship"), "no train images of ship"),
    "a class is empty": (lambda folder: (folder / "test" / "ship" / "0000.png").unlink(), "no test images of ship"),
    "the test images are missing": (lambda folder: shutil.rmtree(folder / "test"), "no test images of airplane, auto"),
    "they are called val": (lambda folder: (folder / "test").rename(folder / "val"), "no test images of airplane"),
    "an unknown class": (lambda folder: (folder / "train" / "zebra").mkdir(), "zebra"),
    "a link to nowhere": (
        lambda folder: (folder / "train/dog/gone.png").symlink_to("no"),
        "gone.png can't be read: No ",
    ),
    "a file that is no image": (lambda folder: (folder / "train/cat/0001.png").write_text("hello"), "cat/0001.png"),
    "an image cut short": (truncate, "cat/0001.png"),
    "16 bits per pixel": (save(noise(0, 32, 32).astype(np.uint16) * 200), "cat/0001.png"),
    "floating point": (save(np.ones((32, 32), np.float32), name="0001.tif"), "cat/0001.tif"),
    "larger than 32x32": (save(noise(0, 64, 48, 3)), "48x64"),
    "transparent pixels": (save(TRANSPARENT), "transparent"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_spoilt_image_folder_is_refused_with_the_reason(own_data_dir: Path, what: str) -> None:
    spoil, named = REFUSED[what]
    spoil(own_data_dir)
    for dataset in ("cifar10", "auto"):
        with pytest.raises(UserError, match=named) as error:
            load_data(dataset, own_data_dir)
        assert not isinstance(error.value, DataUnavailable)
        assert "\n" not in str(error.value)


CONVERTED = {
    "grey": (noise(3, 32, 32), None),
    "grey with opaque alpha": (noise(3, 32, 32), "LA"),
    "opaque alpha": (noise(3, 32, 32, 3), "RGBA"),
    "palette": (noise(3, 32, 32) // 128 * 255, "P"),
}


@pytest.mark.parametrize("what", CONVERTED)
def test_grey_and_opaque_images_are_converted(own_data_dir: Path, what: str) -> None:
    array, mode = CONVERTED[what]
    save(array, mode)(own_data_dir)
    rgb = array if array.ndim == 3 else np.dstack([array] * 3)
    assert np.array_equal(load_cifar10(own_data_dir).train_images[7].permute(1, 2, 0), rgb)


def test_links_spaces_and_other_letters_in_names(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "Bilder für süße 小猫", 1, 1)
    (folder / "train" / "cat" / "0000.png").rename(folder / "train" / "cat" / "кот 1.png")
    link = tmp_path / "link to data"
    link.symlink_to(folder, target_is_directory=True)
    assert len(load_cifar10(link).train_labels) == 10


def test_a_folder_that_cannot_be_written_is_read_without_a_cache(own_data_dir: Path) -> None:
    # A folder in the lock's place fails for root, too, as a read-only disk does.
    (own_data_dir / ".lock").mkdir()
    assert len(load_cifar10(own_data_dir).train_labels) == 20
    assert not (own_data_dir / "cifar10-cache.npz").exists()


# --- Official files


@pytest.mark.parametrize("place", ["cifar-10-batches-py", "my copy", "a/b/cifar-10-batches-py"])
@pytest.mark.parametrize("itself", [True, False])
def test_official_files_are_known_by_their_content(tmp_path: Path, archive: bytes, place: str, itself: bool) -> None:
    folder = tmp_path / "data" / place
    folder.parent.mkdir(parents=True)
    put_official_files(tmp_path).joinpath("cifar-10-batches-py").rename(folder)
    check_official(load_cifar10(folder if itself else tmp_path / "data"))


@pytest.mark.parametrize(
    ("name", "compression"),
    [
        (loading.ARCHIVE, "gz"),
        ("cifar-10-python (1).tar.gz", "xz"),
        ("data.tgz", "gz"),
        ("deeper/my copy.tar", ""),
        ("CIFAR10.tar.bz2", "bz2"),
    ],
)
def test_any_archive_of_the_official_files(tmp_path: Path, archive: bytes, name: str, compression: str) -> None:
    write(name, tar_file(official_files(), compression))(tmp_path)
    for _ in range(2):
        check_official(load_cifar10(tmp_path))


def escaping_tar(name: str, link: str = "") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
        tar.addfile(member, io.BytesIO())
    return content.getvalue()


WRONG = {
    "cut short": (
        tar_file({"data_batch_1": noise(0, 100_000).tobytes()})[:-100],
        "can't be read: Compressed file ended",
    ),
    "wrong content": (tar_file({"data_batch_1": b"x"}), "/cifar-10-batches-py fails its MD5 check"),
    "leaves its folder": (escaping_tar("../../data_batch_1"), "can't be read: .* outside the destination"),
    "holds links": (escaping_tar("data_batch_1", "/etc/passwd"), "can't be read: .* absolute"),
    "no archive": (b"hello", "has cifar-10-python.tar.gz, but no CIFAR-10 that can be read"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_archive_is_refused(tmp_path: Path, what: str) -> None:
    content, message = WRONG[what]
    write(f"data/{loading.ARCHIVE}", content)(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_cifar10(tmp_path / "data")
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert {p.name for p in (tmp_path / "data").iterdir()} <= {loading.ARCHIVE, ".lock"}


def test_a_good_archive_is_not_blamed_for_a_full_disk(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / loading.ARCHIVE).write_bytes(archive)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz can't be read: File too large"):
            load_cifar10(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- Parquet, NumPy's arrays, archives of image folders, and folders deeper


def write_parquet(source: Path, target: Path, column: str = "img", parts: int = 1) -> None:
    """An image folder as Hugging Face keeps it, in `parts` files a split."""
    for split in ("train", "test"):
        paths = sorted((source / split).glob("*/*.png"), key=lambda path: path.name)  # not by class
        cells = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        table = pd.DataFrame({column: cells, "label": [CLASSES.index(path.parent.name) for path in paths]})
        for i, rows in enumerate(np.array_split(np.arange(len(table)), parts)):
            write(f"{split}-{i:05}-of-{parts:05}.parquet", table.iloc[rows].to_parquet())(target)


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


def packed(kind: str, inside: str = "", spoil: Callable[[Path], None] | None = None) -> Callable[[Path, Path], None]:
    def make(source: Path, target: Path) -> None:
        unpacked = target.with_name("unpacked")
        shutil.copytree(source, unpacked / inside)
        if spoil:
            spoil(unpacked / inside)
        shutil.make_archive(str(target / "archive"), kind, unpacked)

    return make


FORMS = {  # what makes it of an image folder, and how it is called
    "three folders down": (lambda source, target: shutil.copytree(source, target / "a/b/c"), "image folder in a/b/c"),
    "a zip": (packed("zip", "cifar10/cifar10"), "archive.zip"),
    "a tar": (packed("tar"), "archive.tar"),
    "a tgz": (packed("gztar", "cifar10"), "archive.tar.gz"),
    "Parquet": (write_parquet, "Parquet"),
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
    assert sorted(train) == sorted(same) and (train == same) == (form in list(FORMS)[:4])
    assert (train == same[::-1]) == form.startswith("arrays") and (train == same) == (first.checksum == folder.checksum)
    test = pairs(first.test_images, first.test_labels)
    assert sorted(test) == sorted(pairs(folder.test_images, folder.test_labels))


def parquet(content: bytes | dict) -> Callable[[Path, Path], None]:
    content = content if isinstance(content, bytes) else pd.DataFrame(content).to_parquet()
    return lambda source, target: write("train-00000-of-00001.parquet", content)(target)


SPOILT = {
    "a pointer to a file that was not fetched": (parquet(b"version https://git-lfs"), r"001\.parquet can't be read: "),
    "CIFAR-100": (parquet({"img": [], "fine_label": []}), "has the columns img, fine_label: expected label"),
    "no image": (parquet({"img": [{"bytes": b"x"}], "label": [1]}), r"001\.parquet, row 0 can't be read"),
    "floating point": (arrays(x_test=np.ones((10, 32, 32, 3))), "images float64"),
    "other sizes": (arrays(x_test=np.ones((10, 28, 28), np.uint8)), "28, 28"),
    "other labels": (arrays(y_test=np.arange(1, 11)), "labels from 1 to 10"),
    "fewer labels": (arrays(y_test=np.arange(9)), r"labels int64 \(9,\)"),
    "a class without images": (arrays(y_test=np.ones(10, int)), "no test images of airplane, bird"),
    "objects": (arrays(y_test=np.array([{}])), "Object arrays cannot be loaded"),
    "a zip with a damaged image": (packed("zip", "a", truncate), r"archive\.zip/a/train/cat/0001\.png can't be read"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_another_form_that_is_spoilt_is_refused_with_the_reason(own_data_dir: Path, tmp_path: Path, what: str) -> None:
    make, message = SPOILT[what]
    make(own_data_dir, tmp_path / "spoilt")
    with pytest.raises(UserError, match=message) as error:
        load_cifar10(tmp_path / "spoilt")
    assert "\n" not in str(error.value)


def test_parquet_without_pyarrow_says_what_to_install(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(data_dir, tmp_path / "data")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"parquet can't be read without pyarrow: pip install pyarrow$"):
        load_cifar10(tmp_path / "data")


def test_the_test_images_alone_are_enough_where_nothing_is_trained(own_data_dir: Path) -> None:
    whole = load_cifar10(own_data_dir)
    shutil.rmtree(own_data_dir / "train")
    for _ in range(2):  # from the files, and from the cache
        data = load_cifar10(own_data_dir, test_only=True)
        assert torch.equal(data.test_images, whole.test_images) and data.train_images.shape == (0, 3, 32, 32)
        with pytest.raises(UserError, match="no train images of airplane"):
            load_cifar10(own_data_dir)


def test_arrays_of_other_test_images(tmp_path: Path) -> None:
    images, labels = noise(1, 15, 32, 32, 3), np.arange(15, dtype=np.int32) % 10
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", labels)
    data = load_test_arrays(tmp_path / "x.npy", tmp_path / "y.npy")
    assert np.array_equal(data.test_images.permute(0, 2, 3, 1), images) and np.array_equal(data.test_labels, labels)
    for other, message in ((labels[:9], r"labels int32 \(9,\)"), (labels + 1, "labels from 1 to 10")):
        np.save(tmp_path / "y.npy", other)
        with pytest.raises(UserError, match=message):
            load_test_arrays(tmp_path / "x.npy", tmp_path / "y.npy")
    with pytest.raises(UserError, match=r"gone\.npy can't be read: No such file"):
        load_test_arrays(tmp_path / "gone.npy", tmp_path / "y.npy")


# --- What is not CIFAR-10, or not where it should be


def test_the_tutorials_class_names(own_data_dir: Path) -> None:
    before = load_cifar10(own_data_dir)
    for split in ("train", "test"):
        (own_data_dir / split / "airplane").rename(own_data_dir / split / "plane")
        (own_data_dir / split / "automobile").rename(own_data_dir / split / "car")
    data = load_cifar10(own_data_dir)
    assert torch.equal(data.train_images, before.train_images) and torch.equal(data.train_labels, before.train_labels)
    assert torch.equal(data.test_images, before.test_images)
    shutil.copytree(own_data_dir / "train" / "car", own_data_dir / "train" / "automobile")
    with pytest.raises(UserError, match=r"automobile, .*, car, .*: expected a folder for each of"):
        load_cifar10(own_data_dir)


def kaggle_competition(folder: Path) -> None:
    write("train/1.png")(folder)
    write("trainLabels.csv", b"id,label\n1,frog\n")(folder)


BINARY = tar_file({"../cifar-10-batches-bin/data_batch_1.bin": b"x"}, "")
UNREADABLE = {  # what is in a folder, and what is said to be there
    "four folders deeper": (lambda folder: make_image_folder(folder / "1/2/3/4", 1, 1), "1"),
    "the binary version": (write("cifar-10-batches-bin/data_batch_1.bin"), "cifar-10-batches-bin"),
    "the binary version, packed": (write("a.tar", BINARY), "a.tar"),
    "Kaggle's competition": (kaggle_competition, "train, trainLabels.csv"),
    "CIFAR-100": (write("cifar-100-python/train"), "cifar-100-python"),
    "TensorFlow's": (write("cifar10/3.0.2/cifar10-train.tfrecord-00000-of-00001"), "cifar10"),
    "HDF5": (write("cifar10.h5"), "cifar10.h5"),
    "CIFAR-10.1": (write("cifar10.1_v6_data.npy"), "cifar10.1_v6_data.npy"),
    "other arrays": (lambda folder: np.savez(folder / "cifar10.npz", x=1), "cifar10.npz"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_anything_else_is_named_before_something_is_downloaded(
    tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, there = UNREADABLE[what]
    make(tmp_path)
    for dataset in ("cifar10", "auto"):
        with pytest.raises(UserError) as error:
            load_data(dataset, tmp_path)
        assert not isinstance(error.value, DataUnavailable)
        assert f"{tmp_path} has {there}" in str(error.value) and "\n" not in str(error.value)
        assert "no CIFAR-10 that can be read: train/<class>/* and" in str(error.value)
    assert "downloading" not in capfd.readouterr().err


def test_the_nearest_form_is_read_whatever_lies_beside_it(own_data_dir: Path, tmp_path: Path, archive: bytes) -> None:
    write("cifar-10-batches-bin/data_batch_1.bin")(own_data_dir)
    make_image_folder(own_data_dir / "deeper", 1, 1)
    assert load_cifar10(own_data_dir).source == "image folder"
    other = put_official_files(tmp_path / "official")
    kaggle_competition(other)
    write("train-00000-of-00001.parquet")(other)
    write("a.tar.gz", b"damaged")(other)
    write("b.tar", tar_file({"notes.txt": b"x"}, ""))(other)
    make_image_folder(other / "deeper", 1, 1)
    check_official(load_cifar10(other))
    shutil.rmtree(other / "cifar-10-batches-py")
    (other / "train-00000-of-00001.parquet").unlink()
    write("c.tar.gz", archive)(other)
    check_official(load_cifar10(other))


# --- Downloads


@pytest.fixture
def server(archive: bytes) -> Iterator[str]:
    """A web server whose paths behave like mirrors do: good, missing, corrupt, cut short, silent, stalled."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/missing":
                return self.send_error(404)
            if self.path == "/silent":
                return time.sleep(3)
            self.send_response(200)
            content = archive[:-1] + b"x" if self.path == "/corrupt" else archive
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path in ("/short", "/stalled") else content)
            self.wfile.flush()
            if self.path == "/stalled":
                time.sleep(3)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_download_passes_by_mirrors_that_fail(tmp_path: Path, server: str) -> None:
    paths = ("missing", "corrupt", "short", "silent", "stalled", "good")
    loading.download(tmp_path, tuple(f"{server}/{path}" for path in paths), timeout=0.3)
    check_official(load_cifar10(tmp_path))


@pytest.mark.parametrize("path", ["missing", "corrupt", "short", "silent", "stalled"])
def test_a_failed_download_names_the_mirror_and_leaves_nothing(tmp_path: Path, server: str, path: str) -> None:
    with pytest.raises(DataUnavailable) as error:
        loading.download(tmp_path, (f"{server}/{path}", f"{server}/missing"), timeout=0.3)
    first, _, *tried, last = str(error.value).splitlines()
    assert first == f"CIFAR-10 is not in {tmp_path} and could not be downloaded." and "--data-dir" in last
    assert [line.split()[0] for line in tried] == [f"{server}/{path}", f"{server}/missing"]
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_download_leaves_is_removed(own_data_dir: Path) -> None:
    (own_data_dir / ".cifar10-abc.tmp").mkdir()
    (own_data_dir / ".cifar10-abc.tmp" / loading.ARCHIVE).write_text("half")
    (own_data_dir / ".cifar10-cifar10-cache.npz.tmp").write_text("half")
    (own_data_dir / ".somebody-elses.tmp").write_text("stays")
    load_cifar10(own_data_dir)
    assert [path.name for path in own_data_dir.glob(".*.tmp")] == [".somebody-elses.tmp"]


# --- The stand-in


def test_the_stand_in_is_the_same_at_every_call() -> None:
    first, second = synthetic_images(), synthetic.synthetic_images()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].shape == (10_000, 3, 32, 32) and first[2].shape == (2_000, 3, 32, 32)
    assert first[0].dtype == np.uint8 and first[1].dtype == np.int64
    assert np.bincount(np.concatenate([first[1], first[3]])).tolist() == [1200] * 10
