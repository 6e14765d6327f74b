"""Files of tensors, whole or not there, and read without executing anything in them."""

import io
import re
import warnings
from pathlib import Path

import torch

from cifar10lab.files.writing import write_file
from cifar10lab.terminal.errors import UserError


def write_torch(path: Path, value: object) -> None:
    """`torch.save`, by way of memory, so that the file is whole or not there."""
    content = io.BytesIO()
    torch.save(value, content)
    write_file(path, content.getbuffer())


def read_torch(path: Path) -> object:
    """What `torch.save` wrote; nothing in the file is executed. UserError if that is not what it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle formats that it may fail to read, which is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except Exception as error:  # torch.load raises many kinds on damaged and foreign files
        unsafe = re.search("GLOBAL|Can only (create|build)|for unrecognized function", str(error))
        what = "holds pickled objects, which are never executed" if unsafe else "is cut short or no torch.save file"
        raise UserError(f"{path} {what}: expected tensors and plain data") from error
