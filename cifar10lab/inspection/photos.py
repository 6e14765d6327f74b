"""Anybody's pictures and arrays, as a network for CIFAR-10 can take them."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from cifar10lab.data.loading import CLASSES, NO_IMAGES, NO_LABELS, Data, data_of, images_and_labels, readable
from cifar10lab.files.writing import printable
from cifar10lab.terminal.errors import UserError

DRAWN, DRAWN_PIXELS = 10, 400  # pictures in classified.png, and a drawn one's longer side, at most


def load_test_arrays(images: Path, labels: Path) -> Data:
    """Test images, uint8 (N, 32, 32, 3), and labels, (N,), from two .npy files, such as CIFAR-10.1's; no others."""
    arrays = []
    for path in (images, labels):
        with readable(path):
            arrays.append(np.asarray(np.load(path, allow_pickle=False)))
    arrays = images_and_labels(*arrays, f"{images} with {labels}")
    return data_of([NO_IMAGES.numpy(), NO_LABELS.numpy(), *arrays], "cifar10", str(images))


def read_photo(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8 (height, width, 3) of at most `DRAWN_PIXELS` pixels a side, and what a network is to see of it.

    That is uint8 (32, 32, 3), the largest square in the middle, antialiased. Any image that Pillow reads, the first
    frame of several, upright as EXIF says, on a white ground if transparent. UserError if it is none, or damaged.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # of odd metadata, which is not looked at
            upright = on_white(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        raise UserError(f"{path} is no image that Pillow reads: convert it to JPEG or PNG") from None
    except Exception as error:  # each of Pillow's decoders raises its own kinds
        raise UserError(f"{path} can't be read as an image: {getattr(error, 'strerror', None) or error}") from error
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    square = upright.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BICUBIC)
    upright.thumbnail((DRAWN_PIXELS, DRAWN_PIXELS))
    return np.asarray(upright), np.asarray(square)


def on_white(image: Image.Image) -> Image.Image:
    """8-bit RGB: grey levels of more bits are scaled down, and transparent pixels show white."""
    if image.mode.startswith(("I", "F")):  # Pillow would clip its values to those from 0 to 255
        values = np.nan_to_num(np.asarray(image, np.float64))
        has_16_bits = image.mode != "F" and values.min() >= 0 and values.max() < 2**16  # Pillow 10.1 opens PNG as "I"
        limits = (0, 2**16 - 1) if has_16_bits else (values.min(), values.max())
        image = Image.fromarray(np.interp(values, limits, [0, 255]).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")


def draw_classified(figure: object, photos: dict[Path, tuple[np.ndarray, np.ndarray]], probabilities: Tensor) -> None:
    """A row for each of the first DRAWN `photos`: both of `read_photo`'s, and its probabilities, float32 (N, 10)."""
    rows = min(len(photos), DRAWN)
    figure.set(size_inches=(9.2, 2.6 * rows + 0.4), dpi=90)
    grid = figure.subplots(rows, 3, squeeze=False, width_ratios=[1.3, 1, 1.2])
    for (left, middle, right), (path, pictures), row in zip(grid, photos.items(), probabilities, strict=False):
        for axes, picture in zip((left, middle), pictures, strict=True):
            axes.imshow(picture)
            axes.axis("off")
        left.set_title(printable(path.name)[-40:], fontsize=10)
        middle.set_title("what the network saw", fontsize=10)
        colours = ["#D55E00" if i == row.argmax() else "#0072B2" for i in range(10)]
        bars = right.barh(CLASSES, 100 * row.numpy(), color=colours)
        right.bar_label(bars, [f"{100 * p:.1f}" for p in row], padding=3, fontsize=8)
        right.invert_yaxis()
        right.set(xlim=(0, 118), xticks=range(0, 101, 25))
        right.tick_params(labelsize=9)
        right.set_title("probability (%)", fontsize=10)
        right.spines[["top", "right"]].set_visible(False)
