"""inspect_weights.py --classify, on pictures that the tests make."""

from pathlib import Path

from common import LeNet, load

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import inspect_weights
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
    if mode == "P":  # with an entry of its palette for nothing
        image = image.getchannel("A").point(lambda alpha: alpha == 0, "L").convert("P")
        image.putpalette([*GREEN, *BLUE])
        image.info["transparency"] = 1
        return image
    return image.convert(mode)


GREY = Image.linear_gradient("L").resize((64, 64))  # black above, white below
MODES = {
    "transparent": (transparent("RGBA"), "png", GREEN, WHITE),
    "transparent WebP": (transparent("RGBA"), "webp", GREEN, WHITE),
    "grey and transparent": (transparent("LA"), "png", (75, 75, 75), WHITE),
    "palette and transparent": (transparent("P"), "png", GREEN, WHITE),
    "GIF and transparent": (transparent("P"), "gif", GREEN, WHITE),
    "two colours": (Image.new("1", (40, 40), 1), "png", WHITE, WHITE),
    "print colours": (Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "tiff", (254, 0, 0), (254, 0, 0)),
}


@pytest.mark.parametrize("what", MODES)
def test_pixels_of_all_kinds(tmp_path: Path, what: str) -> None:
    image, kind, left, right = MODES[what]
    image.save(tmp_path / f"photo.{kind}", **({"lossless": True} if kind == "webp" else {}))
    small = read_photo(tmp_path / f"photo.{kind}")[1]
    assert near([tuple(map(int, small[16, 5])), tuple(map(int, small[16, 26]))], [left, right], 2)


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "32 bits", "floating point", "constant"])
def test_grey_of_any_depth(tmp_path: Path, kind: str) -> None:
    grey = np.asarray(GREY)
    levels = {
        "8 bits": grey,
        "16 bits": grey.astype(np.uint16) * 257,
        "32 bits": grey.astype(np.int32) * 10_000_000 - 1_000_000_000,
        "floating point": grey.astype(np.float32) / 255,
        "constant": np.ones((64, 64), np.float32),
    }
    Image.fromarray(levels[kind]).save(tmp_path / "photo.tiff")
    small = read_photo(tmp_path / "photo.tiff")[1].astype(int)
    if kind != "constant":
        assert np.ptp(small, axis=2).max() == 0 and small[1].max() < 20 and small[30].min() > 235
        assert abs(small[16] - 129).max() < 8


def test_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (GREEN, RED, BLUE)]
    frames[0].save(tmp_path / "photo.gif", save_all=True, append_images=frames[1:])
    assert near(corners(read_photo(tmp_path / "photo.gif")[1]), [GREEN] * 4)


def spoil(path: Path, what: str) -> None:
    if what == "a folder":
        path.mkdir()
    elif what == "text":
        path.write_text("hello")
    elif what == "empty":
        path.touch()
    elif what == "cut short":
        Image.effect_noise((200, 200), 50).save(path)
        path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize("what", ["a folder", "text", "empty", "cut short", "missing"])
def test_what_is_no_image_is_one_line(tmp_path: Path, what: str) -> None:
    spoil(tmp_path / "photo.jpg", what)
    with pytest.raises(
        UserError, match=r"photo\.jpg (can't be read as an image: .+|is no image that Pillow reads)"
    ) as error:
        read_photo(tmp_path / "photo.jpg")
    assert "\n" not in str(error.value)


def test_classify(inspect, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights, photos = tmp_path / "model.pth", tmp_path / "photos"
    photos.mkdir()
    torch.save({"net": torch.nn.DataParallel(LeNet()).state_dict(), "acc": np.float64(1)}, weights)
    exif = Image.Exif()
    exif[0x0112] = 6
    quarters().save(photos / "turned.jpg", exif=exif)
    quarters().save(photos / "a $photo$ от 小.png")
    GREY.save(photos / "grey.png")
    transparent("RGBA").save(photos / "transparent.png")
    transparent("P").save(photos / "animated.gif")
    spoil(photos / "notes.txt", "text")
    names = [photos / name for name in ("turned.jpg", "notes.txt", "a $photo$ от 小.png", "grey.png")]
    names.append(photos / "transparent.png")
    code, out, err = inspect(weights, "--classify", *names, photos / "none.png", photos / "animated.gif")
    assert code == 1  # for two that could not be read
    assert [line.split()[:2] for line in err.splitlines() if not line.startswith("warning: Glyph")] == [
        ["error:", str(photos / name)] for name in ("notes.txt", "none.png")
    ]
    lines = {line[: line.index("  ")]: line for line in out.splitlines()[2:-1]}
    assert list(lines) == [str(path) for path in (names[0], *names[2:], photos / "animated.gif")]
    model = load(weights, mean=(0.5,) * 3, std=(0.5,) * 3)
    for path, line in lines.items():
        small = torch.from_numpy(read_photo(Path(path))[1].copy()).permute(2, 0, 1)[None]
        probabilities, classes = model(small)[0].detach().softmax(0).sort(descending=True)
        expected = [
            f"{inspect_weights.CLASSES[c]} {100 * p:.1f} %" for p, c in zip(probabilities[:3], classes[:3], strict=True)
        ]
        assert line.removeprefix(path).split() == " ".join(expected).split()
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'classified.png'}"
    assert matplotlib.image.imread(tmp_path / "classified.png").shape[0] > 1000  # five rows
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["classified.png"]


def test_classify_without_any_image(inspect, tmp_path: Path) -> None:
    torch.save(LeNet().state_dict(), tmp_path / "model.pth")
    code, out, err = inspect(tmp_path, "--classify", tmp_path / "none.png")
    assert code == 1 and out == "" and len(err.splitlines()) == 1
    assert not (tmp_path / "classified.png").exists()


def test_many_pictures_are_all_printed_and_the_first_drawn(inspect, tmp_path: Path) -> None:
    torch.save(LeNet().state_dict(), tmp_path / "model.pth")
    for i in range(25):
        quarters().save(tmp_path / f"{i}.png")
    code, out, err = inspect(tmp_path, "--classify", *(tmp_path / f"{i}.png" for i in range(25)))
    assert (code, err) == (0, "") and len(out.splitlines()) == 29 and "the first 20" in out
