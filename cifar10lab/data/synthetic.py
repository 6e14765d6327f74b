"""A stand-in for CIFAR-10 that needs no download: ten classes of drawn shapes and textures."""

import numpy as np

TRAIN_IMAGES, TEST_IMAGES = 10_000, 2_000
NOISE = 0.16  # standard deviation per pixel, where black to white is 1: LeNet is to make some mistakes


def synthetic_images() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Train images, uint8 (N, 3, 32, 32), and labels, int64 (N,); then those for testing: the same at every call."""
    random = np.random.default_rng(10)
    count = TRAIN_IMAGES + TEST_IMAGES
    labels = random.permutation(np.arange(count) % 10)
    images = np.empty((count, 3, 32, 32), np.uint8)
    for label in range(10):
        images[labels == label] = draw(label, count // 10, random)
    return images[:TRAIN_IMAGES], labels[:TRAIN_IMAGES], images[TRAIN_IMAGES:], labels[TRAIN_IMAGES:]


def draw(label: int, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` images of a class, uint8 (count, 3, 32, 32), at random places, sizes, angles and colours."""

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return random.uniform(low, high, (count, *shape)).astype(np.float32)

    down, right = np.mgrid[-15.5:16, -15.5:16].astype(np.float32)
    angle, size = uniform(-0.4, 0.4, 1, 1), uniform(5, 11, 1, 1)
    y, x = down - uniform(-6, 6, 1, 1), right - uniform(-6, 6, 1, 1)
    y, x = y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)
    radius, wave_y, wave_x = np.hypot(x, y), np.sin(4.5 * y / size), np.sin(4.5 * x / size)
    box = np.maximum(abs(x), abs(y))
    mask = (
        radius < size,  # disc
        abs(radius - 0.8 * size) < 0.25 * size,  # ring
        box < 0.9 * size,  # square
        abs(box - 0.75 * size) < 0.2 * size,  # frame
        (y < 0.8 * size) & (y > 2 * abs(x) - 0.9 * size),  # triangle
        (box < size) & (np.minimum(abs(x), abs(y)) < 0.3 * size),  # cross
        wave_y > 0,  # horizontal stripes
        wave_x > 0,  # vertical stripes
        wave_y * wave_x > 0,  # checkerboard
        (wave_y > 0.3) & (wave_x > 0.3),  # dots
    )[label]
    background, foreground = uniform(0.2, 0.8, 3, 1, 1), uniform(0, 1, 3, 1, 1)
    light = uniform(-0.02, 0.02, 1, 1) * down + uniform(-0.02, 0.02, 1, 1) * right
    image = np.where(mask[:, None], foreground, background) + light[:, None]
    image += NOISE * random.standard_normal(image.shape, np.float32)
    return (255 * image.clip(0, 1)).astype(np.uint8)
