"""The user's own code: ``package.module:function`` and ``path/to/file.py:Name``.

Importing such a file runs it. A tutorial's script often trains when it is run, so reading data and
training are stopped here, and what goes wrong is told with the file and line.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from deploykit.errors import ArchitectureError, UsageError
from deploykit.models._sandbox import run_user_code

REFERENCE = re.compile(r"(?P<source>.+):(?P<attribute>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")


@dataclass(frozen=True)
class UserObject:
    """Something of the user's own, imported.

    Attributes:
        name: As the user named it.
        folder: Searched first by its imports.
        value: What it is.
    """

    name: str
    folder: Path
    value: object


def user_object(name: str, what: str, *, instances: bool = False) -> UserObject:
    """Import what a name refers to.

    Args:
        name: ``package.module:function`` (the current folder is searched too), or
            ``path/to/file.py:Name`` (its folder is searched for what it imports); behind the colon
            also an attribute of an attribute, or an entry of a dictionary.
        what: What is wanted, ``network``.
        instances: Whether an object that can be called is wanted rather than what makes one: where
            the name is not there, those that are will be told.

    Raises:
        UsageError: There is no such file, module or name.
        ArchitectureError: The code fails, trains or reads data when it is imported.
    """
    match = REFERENCE.fullmatch(name)
    if match is None:
        raise UsageError(
            f"{name!r} names a file, but not the {what} in it.",
            hint="Add the class or function after a colon: path/to/file.py:Name.",
        )
    source, attribute = match["source"], match["attribute"]
    if source.endswith(".py"):
        folder, step = Path(source).resolve().parent, functools.partial(_import_file, Path(source))
    else:
        folder, step = Path.cwd(), functools.partial(_import_module, source)
    module = run_user_code(step, folder, source, "imported")
    return UserObject(name, folder, _attribute(module, source, attribute, instances))


def user_callable(name: str) -> Callable[..., object]:
    """Import what makes a network.

    Args:
        name: See :func:`user_object`.

    Returns:
        The class or function. Calling it maps what its code raises as importing does.

    Raises:
        UsageError: There is no such file, module or name.
        ArchitectureError: The code fails, trains or reads data when it is imported, or the name
            is not something that makes a network.
    """
    found = user_object(name, "network")
    make = found.value
    if isinstance(make, nn.Module) or not callable(make):
        raise ArchitectureError(
            f"{name} is of type {type(make).__name__}; it does not make a network.",
            hint="Name the class, or a function that returns the network.",
        )
    return _mapped(make, found.folder, name)


def _mapped(make: Callable[..., object], folder: Path, name: str) -> Callable[..., object]:
    @functools.wraps(make, updated=())
    def call(*args: object, **kwargs: object) -> object:
        return run_user_code(functools.partial(make, *args, **kwargs), folder, name, "called")

    return call


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"There is no file {path}.", hint="Check the path before the colon.")
    resolved = path.resolve()
    # A file may be called like an installed package (torch.py): it gets a name of its own.
    digest = hashlib.sha256(str(resolved).encode()).hexdigest()[:8]
    name = f"{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{digest}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file.", hint="Name a .py file before the colon.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up here.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"There is no module {name} in {Path.cwd()} or among the installed packages.",
            hint="Run from the folder that holds it, or name the file: path/to/file.py:Name.",
        ) from error


def _attribute(module: ModuleType, source: str, attribute: str, instances: bool) -> object:
    found: object = module
    try:
        for part in attribute.split("."):
            found = found[part] if isinstance(found, Mapping) else getattr(found, part)
    except (AttributeError, KeyError) as error:
        known = list(found) if isinstance(found, Mapping) else _defined_in(module)
        if instances and not isinstance(found, Mapping):
            known = [*_instances_in(module), *known]
        near = difflib.get_close_matches(attribute, map(str, known), n=3) or known[:8]
        raise UsageError(
            f"There is no {attribute} in {source}.",
            hint=f"It defines: {', '.join(map(str, near))}."
            if near
            else "It defines no class or function.",
        ) from error
    return found


def _defined_in(module: ModuleType) -> list[str]:
    """The classes and functions that a module defines for others."""
    return [
        name
        for name, value in _public(module)
        if getattr(value, "__module__", None) == module.__name__
        and (inspect.isfunction(value) or inspect.isclass(value))
    ]


def _instances_in(module: ModuleType) -> Iterator[str]:
    """A module's objects that can be called, and such entries of its dictionaries."""
    for name, value in _public(module):
        if isinstance(value, Mapping):
            yield from (f"{name}.{key}" for key, entry in value.items() if _is_instance(entry))
        elif _is_instance(value):
            yield name


def _public(module: ModuleType) -> Iterator[tuple[str, object]]:
    return ((name, value) for name, value in vars(module).items() if not name.startswith("_"))


def _is_instance(value: object) -> bool:
    """Whether a value can be called, and is no class, no function and no type hint."""
    hint = type(value).__module__ in ("typing", "types")
    return not (hint or inspect.isclass(value) or inspect.isroutine(value)) and callable(value)
