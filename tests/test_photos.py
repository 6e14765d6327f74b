"""inspect_weights.py --classify, on pictures that the tests make."""

import os
from pathlib import Path

from common import LeNet, load

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import inspect_weights
from cifar10lab.data.loading import CLASSES
from cifar10lab.inspection import photos
from cifar10lab.inspection.photos import read_photo
from cifar10lab.terminal.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)


def quarters() -> Image.Image:
    """80x60: red and green above, blue and white below."""
    image = Image.new("RGB", (80, 60), WHITE)
    draw = ImageDraw.Draw(image)
    for corner, colour in (((0, 0), RED), ((40, 0), GREEN), ((0, 30), BLUE)):
        draw.rectangle((*corner, corner[0] + 39, corner[1] + 29), colour)
    return image


def near(pixels: np.ndarray, expected: tuple[int, ...] | list[tuple[int, ...]], tolerance: int = 1) -> bool:
    return np.abs(np.subtract(pixels, expected, dtype=int)).max() <= tolerance


def are_quarters(photo: np.ndarray, small: np.ndarray, tolerance: int) -> bool:
    corners = small[[6, 6, 25, 25], [6, 25, 6, 25]]
    return photo.shape == (60, 80, 3) and near(corners, [RED, GREEN, BLUE, WHITE], tolerance)


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp", "jpg", "gif", "ppm"])
def test_formats_and_the_first_of_several_frames(tmp_path: Path, kind: str) -> None:
    several = {"save_all": kind in ("tiff", "webp", "gif"), "append_images": [Image.new("RGB", (80, 60))]}
    quarters().save(tmp_path / f"photo.{kind}", lossless=True, quality=95, **several)
    photo, small = read_photo(tmp_path / f"photo.{kind}")
    assert small.shape == (32, 32, 3) and small.dtype == photo.dtype == np.uint8
    assert are_quarters(photo, small, 6 if kind == "jpg" else 1)


TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270")


@pytest.mark.parametrize(("orientation", "turn"), [*enumerate(TURNS, 2)])  # of an upright picture to a stored one
def test_exif_orientation(tmp_path: Path, orientation: int, turn: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters().transpose(Image.Transpose[turn]).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    assert are_quarters(*read_photo(tmp_path / "photo.jpg"), 6)


@pytest.mark.parametrize("size", [(3000, 500), (500, 3000), (33, 32), (20, 10), (1, 1), (1, 400)])
def test_the_square_in_the_middle_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    image, side = Image.new("RGB", size, RED), min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image.paste(GREEN, (left, top, left + side, top + side))
    image.save(tmp_path / "photo.png")
    photo, small = read_photo(tmp_path / "photo.png")
    assert max(photo.shape) <= 400 and near(small, GREEN)


def test_antialiasing(tmp_path: Path) -> None:
    Image.fromarray(np.indices((320, 320)).sum(0) % 2 == 1).save(tmp_path / "photo.png")
    small = read_photo(tmp_path / "photo.png")[1]
    assert abs(small.astype(int) - 127).max() <= 3  # without it, only 0 and 255


def transparent(mode: str) -> Image.Image:
    """Green on the left, nothing on the right."""
    image = Image.new("RGBA", (40, 40), (*GREEN, 255))
    image.paste((*BLUE, 0), (20, 0, 40, 40))
    return image.convert(mode)


MODES = {
    "transparent": (transparent("RGBA"), "png", GREEN, WHITE),
    "transparent WebP": (transparent("RGBA"), "webp", GREEN, WHITE),
    "grey and transparent": (transparent("LA"), "png", (75, 75, 75), WHITE),
    "GIF and transparent": (transparent("RGBA"), "gif", GREEN, WHITE),
    "two colours": (Image.new("1", (40, 40), 1), "png", WHITE, WHITE),
    "print colours": (Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "tiff", (254, 0, 0), (254, 0, 0)),
}


@pytest.mark.parametrize("what", MODES)
def test_pixels_of_all_kinds(tmp_path: Path, what: str) -> None:
    image, kind, left, right = MODES[what]
    image.save(tmp_path / f"photo.{kind}", lossless=True)
    small = read_photo(tmp_path / f"photo.{kind}")[1]
    assert near(small[16, [5, 26]], [left, right], 2)


GREY = np.asarray(Image.linear_gradient("L").resize((64, 64)))  # black above, white below
LEVELS = {
    "8 bits": GREY,
    "16 bits": GREY.astype(np.uint16) * 257,
    "32 bits": GREY.astype(np.int32) * 10_000_000 - 1_000_000_000,
    "floating point": GREY.astype(np.float32) / 255,
}


@pytest.mark.parametrize("kind", LEVELS)
def test_grey_of_any_depth(tmp_path: Path, kind: str) -> None:
    Image.fromarray(LEVELS[kind]).save(tmp_path / "photo.tiff")
    small = read_photo(tmp_path / "photo.tiff")[1].astype(int)
    assert np.ptp(small, axis=2).max() == 0 and small[1].max() < 20 and small[30].min() > 235
    assert abs(small[16] - 129).max() < 8


SPOILT = {
    "a folder": Path.mkdir,
    "text": lambda path: path.write_text("hello"),
    "cut short": lambda path: quarters().save(path) or os.truncate(path, 700),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_no_image_is_one_line(tmp_path: Path, what: str) -> None:
    SPOILT[what](tmp_path / "photo.jpg")
    expected = r"photo\.jpg (can't be read as an image: .+|is no image that Pillow reads)"
    with pytest.raises(UserError, match=expected) as error:
        read_photo(tmp_path / "photo.jpg")
    assert "\n" not in str(error.value)


def test_classify(inspect, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights, photos = tmp_path / "model.pth", tmp_path / "photos"
    photos.mkdir()
    torch.save(LeNet().state_dict(), weights)
    names = ["colours.jpg", "$фото$ 1.png", "grey.png"]
    for name, image in zip(names, (quarters(), transparent("RGBA"), Image.fromarray(GREY)), strict=True):
        image.save(photos / name)
    (photos / "notes.txt").write_text("hello")
    given = [*names[:2], "notes.txt", *names[2:], "none.png"]
    mean, std = (0.4914, 0.4822, 0.4465), (0.2, 0.2, 0.2)
    words = [weights, "--mean", *mean, "--std", *std, "--classify", *(photos / name for name in given)]
    code, out, err = inspect(*words)
    assert code == 1  # for two that could not be read
    unread = [["error:", str(photos / name)] for name in ("notes.txt", "none.png")]
    assert [line.split()[:2] for line in err.splitlines()] == unread
    lines = {line[: line.index("  ")]: line for line in out.splitlines()[2:-1]}
    assert "images are normalised with mean 0.4914 0.4822 0.4465, std 0.2 0.2 0.2\n" in out
    assert list(lines) == [str(photos / name) for name in names]
    model = load(weights, mean=mean, std=std)
    for path, line in lines.items():
        small = torch.from_numpy(read_photo(Path(path))[1].copy()).permute(2, 0, 1)[None]
        probabilities, classes = (values[:3] for values in model(small)[0].detach().softmax(0).sort(descending=True))
        expected = [f"{CLASSES[c]} {100 * p:.1f} %" for p, c in zip(probabilities, classes, strict=True)]
        assert line.removeprefix(path).split() == " ".join(expected).split()
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'classified.png'}"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["classified.png"]


def test_classify_without_any_image(inspect, lenet: Path) -> None:
    code, _, err = inspect(lenet, "--classify", lenet / "none.png")
    assert code == 1 and len(err.splitlines()) == 1 and not (lenet / "classified.png").exists()


def test_many_pictures_are_all_printed_and_the_first_drawn(
    inspect, lenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (inspect_weights, photos):
        monkeypatch.setattr(module, "DRAWN", 1)
    for name in ("a.png", "b.png"):
        quarters().save(tmp_path / name)
    code, out, err = inspect(lenet, "--classify", tmp_path / "a.png", tmp_path / "b.png")
    assert (code, err) == (0, "") and f"{tmp_path / 'a.png'} " in out and f"{tmp_path / 'b.png'} " in out
    assert "classified.png shows the first 1 of the 2 pictures\n" in out
    assert matplotlib.image.imread(lenet / "classified.png").shape[0] < 400
