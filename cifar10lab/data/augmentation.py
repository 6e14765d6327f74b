"""Training images cropped, flipped and cut out, a whole batch at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, padding: int, mode: str, shifts: Tensor, flips: Tensor) -> Tensor:
    """Each image, uint8 (N, 3, 32, 32), padded, cropped to that size again at its own place, and flipped or not.

    `mode` "constant" or "reflect"; `shifts` int64 (2, N), down and right, 0 to twice the padding; `flips` bool (N,).
    """
    images = images if mode == "constant" else images.float()  # F.pad can't reflect uint8
    padded = F.pad(images, (padding,) * 4, mode).byte()
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # (N, 3, shifts, shifts, 32, 32)
    crops = windows[torch.arange(len(padded), device=padded.device), :, shifts[0], shifts[1]]
    return torch.where(flips[:, None, None, None], crops.flip(3), crops)


def cut_out(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """float32 (N, 3, 32, 32) with zeros in a square of `size` pixels a side, as far as it lies within the image.

    `centres` int64 (2, N), down and right, 0 to 31. DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552.
    """
    from_start = torch.arange(32, device=images.device) - (centres - size // 2).unsqueeze(2)
    rows, columns = (from_start >= 0) & (from_start < size)  # bool (N, 32) each
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)
