"""The surroundings in which the user's code runs: importable neighbours, no training, no stdout."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from deploykit.errors import ArchitectureError, DependencyError, DeploykitError
from deploykit.models.factory import CLASS_ARGUMENTS

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
        with (
            contextlib.redirect_stdout(sys.stderr),
            _importable(folder),
            _without_traces(),
            _without_training(),
        ):
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
    place = _place_of(error, folder)
    if isinstance(error, TrainingStartedError):
        return ArchitectureError(f"{what} {error} when it is {doing}, at {place}.", hint=MAIN_GUARD)
    if isinstance(error, SystemExit):
        message = f"{what} ends the program when it is {doing}, at {place}."
        return ArchitectureError(message, hint=MAIN_GUARD)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    message = f"{what} fails when it is {doing}, at {place}: {reason}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _not_found(error.name, message, folder)
    return ArchitectureError(message, hint=_hint_for(error, folder, doing))


def _hint_for(error: BaseException, folder: Path, doing: str) -> str:
    if isinstance(error, SyntaxError):
        return "Correct the file."
    if isinstance(error, ImportError) and "relative import" in str(error):
        return (
            f"It is part of a package: run from the folder above, {folder.parent}, and name it "
            f"package.module:Name, here --arch {folder.name}.MODULE:NAME."
        )
    if doing != "called":
        return MAIN_GUARD
    refused = UNEXPECTED_COUNT.search(str(error)) if isinstance(error, TypeError) else None
    if refused is None:
        return "Check the code, and the --arch-arg values."
    return (
        f"deploykit added {refused['argument']}, the number of classes: it does so for whatever "
        f"takes any keyword, or one of {', '.join(CLASS_ARGUMENTS)}. Name a function that hands "
        "it on rightly: def make(num_classes): return ...; or, if the number is fixed, def make()."
    )


def _not_found(module: str, message: str, folder: Path) -> DeploykitError:
    """The error for a module that the user's code imports and Python does not find."""
    package, _, inner = module.partition(".")
    home = _home_of(package, folder)
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
        hint=f"Install it: pip install {PIP_NAMES.get(package, package)}; or move the network to "
        "a file that does not import it.",
    )


def _home_of(package: str, folder: Path) -> Path | None:
    """The folder that has a module of the user's own; None when it is not theirs."""
    for place in (folder, *folder.parents, Path.cwd()):
        # A folder without code is no package: a run of wandb leaves its logs in ./wandb.
        if (place / f"{package}.py").is_file() or any((place / package).glob("*.py")):
            return place
    return None


def _place_of(error: BaseException, folder: Path) -> str:
    """The ``file:line`` in the user's code that led to an error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = _users_frames(error, folder) or traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}"


def _users_frames(error: BaseException, folder: Path) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if _is_the_users(Path(frame.filename), folder)]


def _is_the_users(path: Path, folder: Path) -> bool:
    # A virtual environment, or a checkout of deploykit, may lie in the user's folder.
    theirs = "site-packages" not in path.parts and not path.is_relative_to(OUR_CODE)
    return theirs and path.is_relative_to(folder)


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the code may have removed it
            sys.path.remove(entry)


@contextlib.contextmanager
def _without_traces() -> Iterator[None]:
    bytecode, backend = sys.dont_write_bytecode, os.environ.get("MPLBACKEND")
    sys.dont_write_bytecode = True
    os.environ["MPLBACKEND"] = "Agg"  # plt.show() of a script would wait for a person
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        if backend is None:
            os.environ.pop("MPLBACKEND", None)
        else:
            os.environ["MPLBACKEND"] = backend


@contextlib.contextmanager
def _without_training() -> Iterator[None]:
    def refuse_step(*_args: object, **_kwargs: object) -> NoReturn:
        raise TrainingStartedError("trains")

    def refuse_batch(*_args: object, **_kwargs: object) -> NoReturn:
        raise TrainingStartedError("reads its data")

    guarded: tuple[tuple[object, str, Callable[..., NoReturn]], ...] = (
        (torch.Tensor, "backward", refuse_step),
        (torch.autograd, "backward", refuse_step),
        (DataLoader, "__iter__", refuse_batch),
    )
    originals = [getattr(owner, name) for owner, name, _ in guarded]
    hook = register_optimizer_step_pre_hook(refuse_step)
    for owner, name, refusal in guarded:
        setattr(owner, name, refusal)
    try:
        yield
    finally:
        hook.remove()
        for (owner, name, _), original in zip(guarded, originals, strict=True):
            setattr(owner, name, original)
