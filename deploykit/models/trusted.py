"""Checkpoints that need code, such as a whole network: ``torch.save(model, ...)``.

The user vouches for such a file with ``--trust-pickle``. A script's own classes are pickled as
``__main__.Net``, and found again in the file that ``--arch`` names.
"""

from __future__ import annotations

import functools
import pickle
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploykit.errors import ArchitectureError, CheckpointError
from deploykit.models.pickled import StateDict
from deploykit.models.user_code import imported_module, is_raised_by, run_user_code
from deploykit.system.text import command_line

_MAIN = "__main__."
_SAVE_WEIGHTS = "torch.save(model.state_dict(), 'weights.pth')"
_DEPTH = 4


def code_refusal(path: Path, names: Sequence[str], arch: str | None) -> CheckpointError:
    """The error for a file that needs code which nobody vouched for.

    Args:
        path: The file.
        names: The classes and functions that it needs.
        arch: The user's own network, as ``--arch`` names it; empty where it names none, None where
            the command has no ``--arch``.
    """
    ours = sorted(names, key=lambda name: not name.startswith(_MAIN))
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in ours[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    trust = "add --trust-pickle to this command."
    if ours[0].startswith(_MAIN) and not arch:
        trust = _naming_the_script(path, ours[0], arch)
    return CheckpointError(
        f"{path} holds more than weights: loading it would run code ({shown:.200}{more}).",
        hint=f"Save the weights alone: {_SAVE_WEIGHTS}. "
        f"Or, if you made this file yourself, {trust}",
    )


def _naming_the_script(path: Path, name: str, arch: str | None) -> str:
    """How the script is named that a file needs, and trusted; see :func:`code_refusal`."""
    made = name.removeprefix(_MAIN)
    network = f"SCRIPT.py:{made if made.isidentifier() else 'Net'}"
    if arch is None:
        words = ["--arch", network, "--ckpt", str(path), "--trust-pickle"]
        command = command_line(["deploykit", "export", *words])
        return f"export it, where --arch names the script that has its classes: {command}"
    return f"name the script that saved it in this command: --arch {network} --trust-pickle"


def load_trusted(path: Path, names: Sequence[str], arch: str | None) -> tuple[object, str]:
    """Load a file with the code that it needs.

    Args:
        path: A file of torch.save, which is whole.
        names: See :func:`code_refusal`, as for ``arch``.
        arch: Whose file has what the script called ``__main__``.

    Returns:
        What it holds, networks as their state_dict; and a note for the user, or "".

    Raises:
        CheckpointError: Its code is not found, fails, trains or reads data.
        DependencyError: Its code imports a package that is not installed.
    """
    found = imported_module(arch) if arch else None
    mine = [name for name in names if name.startswith(_MAIN)]
    if mine and found is None:
        raise CheckpointError(
            f"{path} was saved by a script, whose classes it needs: {', '.join(mine[:3])}.",
            hint=f"If you made this file yourself, {_naming_the_script(path, mine[0], arch)}",
        )
    module, folder = found or (None, Path.cwd())
    source = (arch or "").rpartition(":")[0]
    step = functools.partial(_load, path, module, source, folder)
    try:
        loaded = run_user_code(step, folder, str(path), "loaded")
    except ArchitectureError as error:
        raise CheckpointError(
            error.message,
            hint="The code that the file needs must only define the network: put the rest under "
            f"'if __name__ == \"__main__\":', or save the weights alone: {_SAVE_WEIGHTS}.",
        ) from error
    note = f"loaded with its code: {', '.join(mine[:3])}{' ...' * (len(mine) > 3)} as in {source}"
    return loaded, note if mine else ""


def _load(path: Path, module: types.ModuleType | None, source: str, folder: Path) -> object:
    class Unpickler(pickle.Unpickler):
        def find_class(self, module_name: str, name: str) -> Any:
            if module is None or f"{module_name}." != _MAIN:
                return super().find_class(module_name, name)
            try:
                return functools.reduce(getattr, name.split("."), module)
            except AttributeError as error:
                raise CheckpointError(
                    f"{path} needs {name} of the script that saved it; {source} has none.",
                    hint="Name that script: --arch SCRIPT.py:Net.",
                ) from error

    finder: Any = types.SimpleNamespace(**(vars(pickle) | {"Unpickler": Unpickler}))
    try:
        with path.open("rb") as file:
            loaded: object = torch.load(
                file, map_location="cpu", weights_only=False, pickle_module=finder
            )
        return _with_states(loaded)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path} needs code that is not found here: {error}.",
            hint="Run from the folder that has the code, or save the weights alone there: "
            f"{_SAVE_WEIGHTS}.",
        ) from error
    except CheckpointError:
        raise
    except Exception as error:
        if is_raised_by(error, folder):
            raise
        raise CheckpointError(
            f"{path} cannot be loaded with its code: {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}",
            hint=f"Save the weights alone where it was trained: {_SAVE_WEIGHTS}.",
        ) from error


def _with_states(value: object, depth: int = 0) -> object:
    """A value with networks as their state_dict, which their own code may make."""
    if isinstance(value, nn.Module):
        return value.state_dict()
    if depth < _DEPTH and isinstance(value, Mapping):
        made = StateDict((key, _with_states(child, depth + 1)) for key, child in value.items())
        made._metadata = getattr(value, "_metadata", None)  # noqa: SLF001  # torch's name
        return made
    if depth < _DEPTH and isinstance(value, (list, tuple)):
        return [_with_states(child, depth + 1) for child in value]
    return value
