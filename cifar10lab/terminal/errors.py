"""Errors for the person at the keyboard: one line each."""

import textwrap


class UserError(Exception):
    """Something that the person at the keyboard can put right: shown as one line, exit code 1."""


class WrongOption(UserError):
    """A setting, or an argument of the model's constructor, that can't be: exit code 2."""


def in_one_line(error: BaseException) -> str:
    """Somebody else's exception: "FileNotFoundError: [Errno 2] No such file or directory: 'prior.pt'"."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
