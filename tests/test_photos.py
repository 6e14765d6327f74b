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


def corners(small: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(map(int, small[y, x])) for y in (6, 25) for x in (6, 25)]


def near(colours: list[tuple[int, ...]], expected: list[tuple[int, ...]], tolerance: int = 1) -> bool:
    return np.abs(np.subtract(colours, expected)).max() <= tolerance


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp", "jpg", "gif", "ppm"])
def test_formats(tmp_path: Path, kind: str) -> None:
    quarters().save(tmp_path / f"photo.{kind}", **({"lossless": True} if kind == "webp" else {"quality": 95}))
    photo, small = read_photo(tmp_path / f"photo.{kind}")
    assert photo.shape == (60, 80, 3) and small.shape == (32, 32, 3) and small.dtype == photo.dtype == np.uint8
    assert near(corners(small), [RED, GREEN, BLUE, WHITE], 6 if kind == "jpg" else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    turn = Image.Transpose
    turns = (None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM)
    turns += (turn.TRANSPOSE, turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270)  # of an upright picture to a stored one
    stored, exif = quarters(), Image.Exif()
    exif[0x0112] = orientation
    if orientation > 1:
        stored = stored.transpose(turns[orientation - 1])
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    photo, small = read_photo(tmp_path / "photo.jpg")
    assert photo.shape == (60, 80, 3) and near(corners(small), [RED, GREEN, BLUE, WHITE], 6)


@pytest.mark.parametrize("size", [(3000, 500), (500, 3000), (33, 32), (20, 10), (1, 1), (1, 400)])
def test_the_square_in_the_middle_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    image, side = Image.new("RGB", size, RED), min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image.paste(GREEN, (left, top, left + side, top + side))
    image.save(tmp_path / "photo.png")
    photo, small = read_photo(tmp_path / "photo.png")
    assert max(photo.shape) <= 400
    assert near([tuple(map(int, small[y, x])) for y in (1, 16, 30) for x in (1, 16, 30)], [GREEN] * 9)


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
    image.save(tmp_path / f"photo.{kind}", **({"lossless": True} if kind == "webp" else {}))
    small = read_photo(tmp_path / f"photo.{kind}")[1]
    assert near([tuple(map(int, small[16, 5])), tuple(map(int, small[16, 26]))], [left, right], 2)


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


def test_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (GREEN, RED, BLUE)]
    frames[0].save(tmp_path / "photo.gif", save_all=True, append_images=frames[1:])
    assert near(corners(read_photo(tmp_path / "photo.gif")[1]), [GREEN] * 4)


SPOILT = {
    "a folder": Path.mkdir,
    "text": lambda path: path.write_text("hello"),
    "empty": Path.touch,
    "cut short": lambda path: quarters().save(path) or os.truncate(path, 700),
    "missing": lambda path: None,
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
    torch.save({"net": torch.nn.DataParallel(LeNet()).state_dict(), "acc": np.float64(1)}, weights)
    names = ["turned.jpg", "a $photo$ от 小.png", "grey.png", "transparent.gif"]
    exif = Image.Exif()
    exif[0x0112] = 6
    quarters().save(photos / names[0], exif=exif)
    for name, image in zip(names[1:], (quarters(), Image.fromarray(GREY), transparent("RGBA")), strict=True):
        image.save(photos / name)
    (photos / "notes.txt").write_text("hello")
    given = [*names[:2], "notes.txt", *names[2:], "none.png"]
    mean, std = (0.4914, 0.4822, 0.4465), (0.2, 0.2, 0.2)
    words = [weights, "--mean", *mean, "--std", *std, "--classify", *(photos / name for name in given)]
    code, out, err = inspect(*words)
    assert code == 1  # for two that could not be read
    assert [line.split()[:2] for line in err.splitlines() if not line.startswith("warning: Glyph")] == [
        ["error:", str(photos / name)] for name in ("notes.txt", "none.png")
    ]
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
    assert matplotlib.image.imread(tmp_path / "classified.png").shape[0] > 900  # four rows
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["classified.png"]


def test_classify_without_any_image(inspect, lenet: Path) -> None:
    code, _, err = inspect(lenet, "--classify", lenet / "none.png")
    assert code == 1 and len(err.splitlines()) == 1 and not (lenet / "classified.png").exists()


def test_many_pictures_are_all_printed_and_the_first_drawn(
    inspect, lenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_weights, "DRAWN", 1)
    for name in ("a.png", "b.png"):
        quarters().save(tmp_path / name)
    code, out, err = inspect(lenet, "--classify", tmp_path / "a.png", tmp_path / "b.png")
    assert (code, err) == (0, "") and f"{tmp_path / 'a.png'} " in out and f"{tmp_path / 'b.png'} " in out
    assert "classified.png shows the first 1 of the 2 pictures\n" in out
    assert matplotlib.image.imread(lenet / "classified.png").shape[0] < 400
