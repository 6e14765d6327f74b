"""Which code a run is of."""

import ast
import contextlib
import hashlib
import subprocess
from pathlib import Path

from cifar10lab.models.source import HERE, class_file
from cifar10lab.settings.experiment import Settings


def code_record(settings: Settings) -> dict[str, object]:
    """The git commit that the repository is at, a hash of what has changed since, and one of the experiment's own code.

    "commit" and "changed" are None where there is no git; "changed" is False without changes in Python files;
    "model_code" is of the script and of the model's file without comments and docstrings, None for a notebook's class.
    """
    record, file = {"commit": None, "changed": None, "model_code": None}, class_file(settings.model)
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # there is no git, or no repository
        commit, changes = git("rev-parse", "HEAD").strip(), git("diff", "HEAD", "--", "*.py")
        record |= {"commit": commit, "changed": short_hash(changes) if changes else False}
    if file is not None:
        files = {HERE / f"{settings.experiment}.py", file}
        record["model_code"] = short_hash("".join(sorted(syntax(path) for path in files if path.is_file())))
    return record


def git(*words: str) -> str:
    """What git prints of the repository."""
    command = ["git", "-C", str(HERE), *words]
    return subprocess.run(command, capture_output=True, check=True, text=True, errors="replace").stdout


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
