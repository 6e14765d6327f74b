"""Errors for the person at the keyboard: one line each."""


class UserError(Exception):
    """Something that the person at the keyboard can put right: shown as one line, exit code 1."""


class WrongOption(UserError):
    """A setting, or an argument of the model's constructor, that can't be: exit code 2."""
