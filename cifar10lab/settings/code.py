"""Which code a run is of."""

import ast
import contextlib
import functools
import hashlib
import inspect
import subprocess
from collections.abc import Callable
from pathlib import Path

from torch import nn

from cifar10lab.models.source import HERE, class_file


@functools.cache  # files may change after they were imported; an imported class stays as it is
def code_record(experiment: str, model: Callable[..., nn.Module]) -> dict[str, object]:
    """The git commit that the repository is at, a hash of what has changed since, and one of the experiment's own code.

    "commit" and "changed" are None where git doesn't know these scripts; "changed" is False without changes in Python
    files; "model_code" is of the script and of the model's file without comments and docstrings, or of the methods of a
    notebook's class, None if their source isn't there.
    """
    record = {"commit": None, "changed": None}
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # there is no git, or no repository
        git("ls-files", "--error-unmatch", "common.py")  # or it is somebody else's, in which this was unpacked
        commit, changes = git("rev-parse", "HEAD").strip(), git("diff", "HEAD", "--", "*.py")
        record = {"commit": commit, "changed": short_hash(changes) if changes else False}
    return record | {"model_code": model_code(experiment, model)}


def git(*words: str) -> str:
    """What git prints of the repository."""
    command = ["git", "-C", str(HERE), *words]
    return subprocess.run(command, capture_output=True, check=True, text=True, errors="replace").stdout


def model_code(experiment: str, model: Callable[..., nn.Module]) -> str | None:
    """A hash of the syntax of the experiment's script and of the file of its model's class."""
    file = class_file(model)
    if file is None:
        functions = [value for value in vars(model).values() if inspect.isfunction(value)] or [model]
        with contextlib.suppress(OSError, TypeError):
            return short_hash("".join(map(inspect.getsource, functions)))
        return None
    files = {HERE / f"{experiment}.py", file}
    return short_hash("".join(sorted(syntax(path) for path in files if path.is_file())))


def syntax(path: Path) -> str:
    """The file's code without comments and docstrings."""
    tree, documented = ast.parse(path.read_bytes()), (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def short_hash(text: str) -> str:
    """Twelve hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
