"""Anybody's pictures, as a network for CIFAR-10 can take them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from internals.files import UserError

SHOWN = 400  # pixels that a picture's longer side has at most when it is drawn


def read_photo(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8 (height, width, 3) of at most `SHOWN` pixels a side, and what a network is to see of it.

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
    upright.thumbnail((SHOWN, SHOWN))
    return np.asarray(upright), np.asarray(square)


def on_white(image: Image.Image) -> Image.Image:
    """8-bit RGB: grey levels of more bits are scaled down, and transparent pixels show white."""
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, np.float64))
        sixteen_bits = image.mode != "F" and values.min() >= 0 and values.max() < 2**16
        low, high = (0, 2**16 - 1) if sixteen_bits else (values.min(), values.max())
        return Image.fromarray((255 * (values - low) / max(high - low, 1e-12)).round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")
