"""The user's own code: ``package.module:function`` and ``path/to/file.py:Name``.

Importing such a file runs it. A tutorial's script often trains when it is run, so reading data and
training are stopped here, and what goes wrong is told with the file and line.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn, TypeVar

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from deploykit.errors import ArchitectureError, DependencyError, DeploykitError, UsageError

#: Names by which a network's maker takes the number of classes, in the order they are looked for.
CLASS_ARGUMENTS = ("num_classes", "n_class", "n_classes", "classes")
Result = TypeVar("Result")
OUR_CODE = Path(__file__).resolve().parents[1]
MAIN_GUARD = (
    "The file must only define things when it is imported: put the rest under "
    "'if __name__ == \"__main__\":', or move what is named to a file of its own."
)
#: Packages that pip knows by another name than import does.
PIP_NAMES = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
UNEXPECTED_COUNT = re.compile(
    rf"unexpected keyword argument '(?P<argument>{'|'.join(CLASS_ARGUMENTS)})'"
)


class TrainingStartedError(BaseException):
    """The user's code began to train or to read data.

    Not an ``Exception``, so that no ``except Exception`` of theirs swallows it.
    """


def run_user_code(step: Callable[[], Result], folder: Path, what: str, doing: str) -> Result:
    """Run code that is not ours, and explain what goes wrong in it.

    What it prints goes to stderr, because stdout may be JSON; its folder can be imported from; no
    bytecode is left beside it; no window opens; and a step of training, or the first batch of a
    data loader, is an error.

    Args:
        step: Runs the code; a ``DeploykitError`` that it raises passes through.
        folder: Searched first by the code's imports.
        what: The code, as the user named it.
        doing: What is done to it: ``imported``, ``called`` or ``loaded``.

    Raises:
        ArchitectureError: The code fails, ends the program, trains or reads data.
        DependencyError: It imports a package that is not installed.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr), _surroundings(folder), _no_training():
            return step()
    except DeploykitError:
        raise
    except (Exception, SystemExit, TrainingStartedError) as error:
        raise _explained(error, folder, what, doing) from error


def is_raised_by(error: BaseException, folder: Path) -> bool:
    """Whether the user's code in a folder had a part in an error."""
    # A file that does not parse has no frame yet.
    return isinstance(error, SyntaxError) or bool(_users_frames(error, folder))


def _explained(error: BaseException, folder: Path, what: str, doing: str) -> DeploykitError:
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    else:
        frames = _users_frames(error, folder) or traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}"
    if isinstance(error, TrainingStartedError):
        return ArchitectureError(f"{what} {error} when it is {doing}, at {place}.", hint=MAIN_GUARD)
    if isinstance(error, SystemExit):
        message = f"{what} ends the program when it is {doing}, at {place}."
        return ArchitectureError(message, hint=MAIN_GUARD)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    message = f"{what} fails when it is {doing}, at {place}: {reason}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _not_found(error.name, message, folder)
    if isinstance(error, SyntaxError):
        hint = "Correct the file."
    elif isinstance(error, ImportError) and "relative import" in str(error):
        hint = (
            f"It is part of a package: run from the folder above, {folder.parent}, and name it "
            f"package.module:Name, here --arch {folder.name}.MODULE:NAME."
        )
    elif doing != "called":
        hint = MAIN_GUARD
    elif isinstance(error, TypeError) and (count := UNEXPECTED_COUNT.search(str(error))):
        hint = (
            f"deploykit added {count['argument']}, the number of classes: it does so for whatever "
            f"takes any keyword, or one of {', '.join(CLASS_ARGUMENTS)}. Name a function that "
            "hands it on rightly: def make(num_classes): return ...; or, if the number is fixed, "
            "def make()."
        )
    else:
        hint = "Check the code, and the --arch-arg values."
    return ArchitectureError(message, hint=hint)


def _not_found(module: str, message: str, folder: Path) -> DeploykitError:
    """The error for a module that the user's code imports and Python does not find."""
    package, _, inner = module.partition(".")
    # The folder that has it, where it is the user's own. A folder without code is no package: a
    # run of wandb leaves its logs in ./wandb.
    places = (folder, *folder.parents, Path.cwd())
    home = next(
        (
            place
            for place in places
            if (place / f"{package}.py").is_file() or any((place / package).glob("*.py"))
        ),
        None,
    )
    if home == folder:
        return ArchitectureError(message, hint=f"Correct the import: {folder} has no {module}.")
    if home:
        hint = f"{package} is in {home}: run from there, and name it --arch PACKAGE.MODULE:NAME."
        return ArchitectureError(message, hint=hint)
    if inner:  # were the package itself missing, Python would have said so
        hint = f"{package} is here, without {inner}: install the version that the code is for."
        return DependencyError(message, hint=hint)
    return DependencyError(
        message,
        hint="Move the network to a file that does not import it, or install it: pip install "
        f"{PIP_NAMES.get(package, package)}",
    )


def _users_frames(error: BaseException, folder: Path) -> list[traceback.FrameSummary]:
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if (path := Path(frame.filename)).is_relative_to(folder)
        # A virtual environment, or a checkout of deploykit, may lie in the user's folder.
        and "site-packages" not in path.parts
        and not path.is_relative_to(OUR_CODE)
    ]


@contextlib.contextmanager
def _surroundings(folder: Path) -> Iterator[None]:
    """What the code finds: its neighbours can be imported, and it leaves no trace."""
    entry = str(folder)
    bytecode, backend = sys.dont_write_bytecode, os.environ.get("MPLBACKEND")
    sys.path.insert(0, entry)
    sys.dont_write_bytecode = True
    os.environ["MPLBACKEND"] = "Agg"  # plt.show() of a script would wait for a person
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the code may have removed it
            sys.path.remove(entry)
        sys.dont_write_bytecode = bytecode
        if backend is None:
            os.environ.pop("MPLBACKEND", None)
        else:
            os.environ["MPLBACKEND"] = backend


@contextlib.contextmanager
def _no_training() -> Iterator[None]:
    def stop_step(*_args: object, **_kwargs: object) -> NoReturn:
        raise TrainingStartedError("trains")

    def stop_batch(*_args: object, **_kwargs: object) -> NoReturn:
        raise TrainingStartedError("reads its data")

    guarded: tuple[tuple[object, str, Callable[..., NoReturn]], ...] = (
        (torch.Tensor, "backward", stop_step),
        (torch.autograd, "backward", stop_step),
        (DataLoader, "__iter__", stop_batch),
    )
    originals = [getattr(owner, name) for owner, name, _ in guarded]
    hook = register_optimizer_step_pre_hook(stop_step)
    for owner, name, stop in guarded:
        setattr(owner, name, stop)
    try:
        yield
    finally:
        hook.remove()
        for (owner, name, _), original in zip(guarded, originals, strict=True):
            setattr(owner, name, original)


#: Whose networks are named by a name of the library's, not by a file that imports them.
_LIBRARIES = ("timm", "torch", "torchvision")
_MOST_SHOWN = 12
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


def user_object(name: str, what: str) -> UserObject:
    """Import what a name refers to.

    Args:
        name: ``package.module:function`` (the current folder is searched too), or
            ``path/to/file.py:Name`` (its folder is searched for what it imports); behind the colon
            also an attribute of an attribute, or an entry of a dictionary.
        what: What is wanted, ``network``.

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
    return UserObject(name, folder, _attribute(module, source, attribute, what))


def imported_module(name: str) -> tuple[ModuleType, Path] | None:
    """The module that a name was imported from, and the folder that its imports search first.

    Args:
        name: See :func:`user_object`.

    Returns:
        None where the name is no one's own code, or was not imported.
    """
    match = REFERENCE.fullmatch(name)
    if match is None:
        return None
    path = Path(match["source"])
    is_file = path.suffix == ".py"
    module = sys.modules.get(_module_name(path) if is_file else match["source"])
    folder = path.resolve().parent if is_file else Path.cwd()
    return None if module is None else (module, folder)


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

    @functools.wraps(make, updated=())
    def call(*args: object, **kwargs: object) -> object:
        step = functools.partial(make, *args, **kwargs)
        return run_user_code(step, found.folder, name, "called")

    return call


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"There is no file {path}.", hint="Check the path before the colon.")
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
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


def _module_name(path: Path) -> str:
    # A file may be called like an installed package (torch.py): it gets a name of its own.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{digest}"


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


def _attribute(module: ModuleType, source: str, attribute: str, what: str) -> object:
    found: object = module
    try:
        for part in attribute.split("."):
            found = found[part] if isinstance(found, Mapping) else getattr(found, part)
    except (AttributeError, KeyError) as error:
        defined = _networks_in(module) if what == "network" else _defined_in(module, instances=True)
        known = [*map(str, found if isinstance(found, Mapping) else defined)]
        # All of them: the nearest name need not be the one that is meant.
        near = difflib.get_close_matches(attribute, known, n=3)
        shown = [*near, *(name for name in known if name not in near)]
        more = ", ..." if len(shown) > _MOST_SHOWN else "."
        none = "no network" if what == "network" else "no class or function"
        raise UsageError(
            f"There is no {attribute} in {source}.",
            hint=f"It defines: {', '.join(shown[:_MOST_SHOWN])}{more}"
            if shown
            else f"It defines {none}.",
        ) from error
    return found


def _networks_in(module: ModuleType) -> Iterator[str]:
    """What may make a network: the classes of networks, then the functions that a file defines.

    A network may be imported from another file of the user's, but not from a library.
    """
    classes = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
    for name, value in classes.items():
        library = value.__module__.partition(".")[0] in _LIBRARIES
        if issubclass(value, nn.Module) and not (name.startswith("_") or library):
            yield name
    yield from (name for name in _defined_in(module, instances=False) if name not in classes)


def _defined_in(module: ModuleType, *, instances: bool) -> Iterator[str]:
    """The classes and functions that a module defines.

    Args:
        module: The module.
        instances: Also its objects that can be called, and such entries of its dictionaries.
    """
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, Mapping) and instances:
            yield from (f"{name}.{key}" for key, entry in value.items() if callable(entry))
        elif inspect.isclass(value) or inspect.isroutine(value):
            if getattr(value, "__module__", None) == module.__name__:  # else it is imported
                yield name
        elif instances and callable(value) and type(value).__module__ not in ("typing", "types"):
            yield name
