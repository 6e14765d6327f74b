"""Which file a model's class is in, of which code, and how it is imported and made from there again."""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import subprocess
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from cifar10lab.terminal.arguments import flag_name
from cifar10lab.terminal.errors import UserError, WrongOption, in_one_line

HERE = Path(__file__).resolve().parents[2]  # where the scripts are


def class_file(model: type[nn.Module]) -> Path | None:
    """The file that defines the class; None for a notebook's cell."""
    file = getattr(sys.modules.get(model.__module__), "__file__", None)
    return Path(file).resolve() if file else None


def source_of(model: type[nn.Module]) -> str | None:
    """Where the class is found again: its module, if that is in a package, or its file; None for a notebook's cell.

    "torchvision.models.googlenet", "/home/me/wide-net.py", or "fast_model.py" for a file of this repository.
    """
    file = class_file(model)
    if file is None or "." in model.__module__:
        return file and model.__module__
    return file.relative_to(HERE).as_posix() if file.is_relative_to(HERE) else str(file)


def import_source(source: str) -> types.ModuleType:
    """The module that `source_of` names, imported if it isn't loaded already; UserError if that fails."""
    path = HERE / source  # an absolute path stays as it is
    name = str(path.with_suffix("")).replace(".", "_") if path.suffix == ".py" else source
    for module in (sys.modules.get(loaded) for loaded in ("__main__", path.stem, name)):
        if getattr(module, "__file__", None) and Path(module.__file__).resolve() == path:
            return module
    sys.path.append(str(path.parent))  # the file may import its neighbours
    try:
        if name == source:
            return importlib.import_module(source)
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]
    except (Exception, SystemExit) as error:  # whatever somebody's script does
        sys.modules.pop(name, None)
        raise UserError(f"{path.name} can't be imported: {in_one_line(error)}") from error
    finally:
        sys.path.remove(str(path.parent))


def is_being_imported() -> bool:
    """Whether the caller runs in an import: a script without `if __name__ == "__main__":` must not train then."""
    return any(frame.f_code.co_filename.startswith("<frozen importlib") for frame, _ in traceback.walk_stack(None))


def option_kinds(model: type[nn.Module]) -> dict[str, type]:
    """The type of each argument of the constructor: as annotated (int for `int | None`), otherwise its default's."""
    try:
        hints = typing.get_type_hints(model.__init__ if isinstance(model, type) else model)
    except Exception:  # annotations may name what only a type checker imports
        hints = {}
    kinds = {}
    for name, parameter in inspect.signature(model).parameters.items():
        kind = hints.get(name, type(parameter.default))
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(inner for inner in typing.get_args(kind) if inner is not type(None))
        kind = typing.get_origin(kind) or kind
        kinds[name] = kind if kind in (bool, int, float, str, tuple) else type(parameter.default)
    return kinds


def make_model(model: type[nn.Module], options: Mapping[str, object]) -> nn.Module:
    """`model(**options)`, with tuples where JSON made lists of them; WrongOption for a ValueError, else UserError."""
    tuples = [name for name, kind in option_kinds(model).items() if kind is tuple and type(options.get(name)) is list]
    try:
        return model(**{**options, **{name: tuple(options[name]) for name in tuples}})
    except ValueError as error:
        given = " ".join(f"{flag_name(name)} {value}" for name, value in options.items())
        raise WrongOption(f"{model.__name__} with {given}: {error}") from error
    except Exception as error:
        raise UserError(f"{model.__name__} can't be made: {in_one_line(error)}") from error


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
