"""The surroundings in which the user's code runs: importable neighbours, no training, no stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader


class TrainingStartedError(BaseException):
    """The user's code began to train or to read data.

    Not an ``Exception``, so that no ``except Exception`` of theirs swallows it.
    """


@contextlib.contextmanager
def running_user_code(folder: Path) -> Iterator[None]:
    """Run code that is not ours.

    What it prints goes to stderr, because stdout may be JSON; its folder can be imported from; no
    bytecode is left beside it; no window opens; and a step of training, or the first batch of a
    data loader, raises.

    Args:
        folder: Searched first by the code's imports.

    Raises:
        TrainingStartedError: The code began to train or to read data.
    """
    with (
        contextlib.redirect_stdout(sys.stderr),
        _importable(folder),
        _without_traces(),
        _without_training(),
    ):
        yield


def place_of(error: BaseException, folder: Path) -> str:
    """The ``file:line`` in the user's code that led to an error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_below(Path(frame.filename), folder)]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def _is_below(path: Path, folder: Path) -> bool:
    # A virtual environment may lie in the user's folder.
    return path.is_relative_to(folder) and "site-packages" not in path.parts


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
