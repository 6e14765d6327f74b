"""Reading CIFAR-10: image folders, official files, downloads, and what can be wrong with each."""

import hashlib
import http.server
import io
import pickle
import resource
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, make_image_folder, synthetic_images
from PIL import Image
from torchvision.datasets import CIFAR10

from cifar10lab.data import loading, synthetic
from cifar10lab.data.loading import CLASSES, DataUnavailable, load_cifar10, load_data
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


def put_official_files(folder: Path) -> Path:
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    for name, content in official_files().items():
        (folder / "cifar-10-batches-py" / name).write_bytes(content)
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


@pytest.mark.parametrize("damage", ["cut short", "not numpy", "a pickle", "a flipped bit"])
def test_a_damaged_cache_is_built_again_and_never_executed(own_data_dir: Path, tmp_path: Path, damage: str) -> None:
    first = load_cifar10(own_data_dir)
    cache = own_data_dir / "cifar10-cache.npz"
    content = bytearray(cache.read_bytes())
    if damage == "cut short":
        content = content[: len(content) // 2]
    elif damage == "not numpy":
        content = b"hello"
    elif damage == "a pickle":
        content = pickle.dumps(Command(f"touch {tmp_path}/executed"))
    else:
        content[len(content) // 2] ^= 1
    cache.write_bytes(content)
    assert torch.equal(load_cifar10(own_data_dir).train_images, first.train_images)
    assert torch.equal(load_cifar10(own_data_dir).train_images, first.train_images)
    assert not (tmp_path / "executed").exists()


def add_class(folder: Path) -> None:
    shutil.copytree(folder / "train" / "cat", folder / "train" / "zebra")


def save(array: np.ndarray, mode: str | None = None, name: str = "0001.png") -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        Image.fromarray(array).convert(mode).save(folder / "train" / "cat" / name)

    return spoil


def truncate(folder: Path) -> None:
    path = folder / "train" / "cat" / "0001.png"
    path.write_bytes(path.read_bytes()[:200])


TRANSPARENT = np.dstack([noise(1, 32, 32, 3), np.full((32, 32), 100, np.uint8)])
REFUSED = {
    "a class is missing": (lambda folder: shutil.rmtree(folder / "train" / "ship"), "ship"),
    "a class is empty": (lambda folder: (folder / "test" / "ship" / "0000.png").unlink(), "ship"),
    "the test images are missing": (lambda folder: shutil.rmtree(folder / "test"), "test"),
    "an unknown class": (add_class, "zebra"),
    "a file that is no image": (lambda folder: (folder / "train/cat/0001.png").write_text("hello"), "cat/0001.png"),
    "an image cut short": (truncate, "cat/0001.png"),
    "16 bits per pixel": (save(noise(0, 32, 32).astype(np.uint16) * 200), "cat/0001.png"),
    "floating point": (save(np.ones((32, 32), np.float32), name="0001.tif"), "cat/0001.tif"),
    "larger than 32x32": (save(noise(0, 64, 48, 3)), "48x64"),
    "transparent pixels": (save(TRANSPARENT), "transparent"),
    "labels in another order": (lambda folder: (folder / "labels.txt").write_text("cat\ndog\n"), "labels.txt"),
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


def test_hidden_and_other_files_are_no_images(own_data_dir: Path) -> None:
    before = load_cifar10(own_data_dir)
    for name in (".DS_Store", "Thumbs.db", "._0000.png", "notes.txt"):
        (own_data_dir / "train" / "cat" / name).write_bytes(b"x")
    (own_data_dir / "train" / ".ipynb_checkpoints").mkdir()
    assert torch.equal(load_cifar10(own_data_dir).train_images, before.train_images)


def test_a_link_to_nowhere_is_named(own_data_dir: Path) -> None:
    (own_data_dir / "train" / "dog" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png can't be read: No such file"):
        load_cifar10(own_data_dir)


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


def test_official_files(tmp_path: Path, archive: bytes) -> None:
    check_official(load_cifar10(put_official_files(tmp_path)))


def test_official_archive(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / loading.ARCHIVE).write_bytes(archive)
    check_official(load_cifar10(tmp_path))
    check_official(load_cifar10(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == [loading.ARCHIVE, "cifar10-cache.npz"]


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_a_changed_official_file_fails_its_checksum(tmp_path: Path, archive: bytes, name: str) -> None:
    path = put_official_files(tmp_path) / "cifar-10-batches-py" / name
    path.write_bytes(path.read_bytes().replace(b"cat", b"cow") + b" ")
    with pytest.raises(UserError, match="MD5"):
        load_cifar10(tmp_path)


ELSEWHERE = {
    "named itself": "cifar-10-batches-py",
    "named itself, with another name": "my copy",
    "a folder deeper": "cifar-10-python/cifar-10-batches-py",
    "a folder of another name": "my copy",
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_official_files_are_known_by_their_content(tmp_path: Path, archive: bytes, where: str) -> None:
    place = tmp_path / "data" / ELSEWHERE[where]
    place.parent.mkdir(parents=True)
    put_official_files(tmp_path).joinpath("cifar-10-batches-py").rename(place)
    data_dir = place if "itself" in where else tmp_path / "data"
    check_official(load_cifar10(data_dir))
    written = (data_dir / "cifar10-cache.npz").stat().st_mtime_ns
    check_official(load_cifar10(data_dir))
    assert (data_dir / "cifar10-cache.npz").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "name",
    ["cifar-10-python.tar", "cifar-10-python.tar.gz", "cifar-10-python (1).tar.gz", "deeper/cifar-10-python.tar"],
)
@pytest.mark.parametrize("compression", ["", "gz", "xz"])
def test_any_archive_of_the_official_files(tmp_path: Path, archive: bytes, name: str, compression: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(tar_file(official_files(), compression))
    check_official(load_cifar10(tmp_path))


@pytest.mark.parametrize("what", ["cut short", "wrong content", "leaves its folder", "holds links", "no archive"])
def test_a_wrong_archive_is_refused(tmp_path: Path, archive: bytes, what: str) -> None:
    files = official_files()
    wrong = tar_file(files | {"data_batch_2": files["data_batch_3"]})
    content = {"cut short": archive[:-100], "wrong content": wrong, "no archive": b"hello"}.get(what, b"")
    if not content:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, part in files.items():
                member = tarfile.TarInfo(f"../{name}")
                if what == "holds links":
                    member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / name)
                elif name == "test_batch":
                    member.name, member.size = "../../../escaped", len(part)
                tar.addfile(member, io.BytesIO(part))
        content = buffer.getvalue()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / loading.ARCHIVE).write_bytes(content)
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz fails its MD5 check") as error:
        load_cifar10(folder)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert {p.name for p in folder.iterdir()} <= {loading.ARCHIVE, ".lock"}


def test_a_good_archive_is_not_blamed_for_a_full_disk(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / loading.ARCHIVE).write_bytes(archive)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz can't be unpacked: File too large"):
            load_cifar10(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- What is not CIFAR-10, or not where it should be


def test_the_tutorials_class_names(own_data_dir: Path) -> None:
    before = load_cifar10(own_data_dir)
    for split in ("train", "test"):
        (own_data_dir / split / "airplane").rename(own_data_dir / split / "plane")
        (own_data_dir / split / "automobile").rename(own_data_dir / split / "car")
    (own_data_dir / "labels.txt").write_text("plane car bird cat deer dog frog horse ship truck")
    data = load_cifar10(own_data_dir)
    assert torch.equal(data.train_images, before.train_images) and torch.equal(data.train_labels, before.train_labels)
    assert torch.equal(data.test_images, before.test_images)
    shutil.copytree(own_data_dir / "train" / "car", own_data_dir / "train" / "automobile")
    with pytest.raises(UserError, match="both car and automobile"):
        load_cifar10(own_data_dir)


def kaggle(folder: Path) -> None:
    flat(folder)
    (folder / "trainLabels.csv").write_text("id,label\n1,frog\n")


def flat(folder: Path) -> None:
    (folder / "train").mkdir()
    Image.fromarray(noise(1, 32, 32, 3)).save(folder / "train" / "1.png")


def touch(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")

    return make


MISPLACED = {
    "train/ itself": (lambda folder: make_image_folder(folder, 1, 1), "train", "--data-dir {folder}"),
    "a folder deeper": (lambda folder: make_image_folder(folder / "cifar10", 1, 1), "", "in {folder}/cifar10: name"),
    "val/": (lambda folder: make_image_folder(folder, 1, 1).joinpath("test").rename(folder / "val"), "", "has val/"),
    "valid/": (lambda folder: make_image_folder(folder, 1, 1).joinpath("test").rename(folder / "valid"), "", "valid/"),
    "binary": (touch("cifar-10-batches-bin/data_batch_1.bin"), "", "cifar-10-batches-bin is CIFAR-10's binary version"),
    "binary, itself": (touch("x/data_batch_1.bin"), "x", "data_batch_1.bin is of CIFAR-10's binary version"),
    "binary, packed": (touch("cifar-10-binary.tar.gz"), "", "cifar-10-binary.tar.gz is CIFAR-10's binary version"),
    "Matlab": (touch("cifar-10-batches-mat/data_batch_1.mat"), "", "cifar-10-batches-mat is CIFAR-10's Matlab version"),
    "Parquet": (touch("train-00000-of-00001.parquet"), "", "Hugging Face's Parquet version"),
    "Parquet, deeper": (touch("plain_text/train-00000-of-00001.parquet"), "", "Hugging Face's Parquet version"),
    "Kaggle": (kaggle, "", "trainLabels.csv is of Kaggle's competition"),
    "no class folders": (flat, "", "train has no folders with the names of CIFAR-10's classes"),
    "a file": (touch("a.tar.gz"), "a.tar.gz", "is a file"),
}


@pytest.mark.parametrize("what", MISPLACED)
def test_what_cannot_be_used_is_named_before_anything_is_downloaded(
    tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, named, message = MISPLACED[what]
    make(tmp_path)
    for dataset in ("cifar10", "auto"):
        with pytest.raises(UserError) as error:
            load_data(dataset, tmp_path / named)
        assert not isinstance(error.value, DataUnavailable)
        assert message.format(folder=tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert "downloading" not in capfd.readouterr().err


def test_other_things_beside_cifar10_are_no_hindrance(own_data_dir: Path, tmp_path: Path, archive: bytes) -> None:
    touch("cifar-10-batches-bin/data_batch_1.bin")(own_data_dir)
    make_image_folder(own_data_dir / "deeper", 1, 1)
    assert load_cifar10(own_data_dir).source == "image folder"
    other = tmp_path / "official"
    put_official_files(other)
    kaggle(other)
    touch("train-00000-of-00001.parquet")(other)
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
