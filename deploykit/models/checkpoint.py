"""Reading a checkpoint: whatever training saved becomes one plain ``state_dict`` in float32."""

from __future__ import annotations

import functools
import pickle
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deploykit.errors import ArchitectureError, CheckpointError
from deploykit.models._sandbox import is_raised_by, run_user_code
from deploykit.models.entries import Entry, find_weights
from deploykit.models.file_kinds import AGAIN, Container, container_of
from deploykit.models.names import WRAPPERS
from deploykit.models.stand_ins import stand_ins
from deploykit.system.deps import need

#: How torch's restricted unpickler says that a file asks for code.
NEEDS_CODE = re.compile(
    r"(?:Unsupported global:|Trying to load unsupported) GLOBAL (?P<name>[\w.]+)"
    r"|Unsupported class|unrecognized function"
    r"|Can only (?:build|create)|Trying to (?:call|instantiate)"
)
#: torch.optim.swa_utils.AveragedModel counts here beside the ``module.`` it averages.
AVERAGE_COUNT = "n_averaged"
#: What torch.load raises on a file that is not whole, by experiment.
DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)


@dataclass(frozen=True)
class Weights:
    """The weights of a network, as a checkpoint holds them.

    Attributes:
        state_dict: Names to CPU tensors; floating-point ones are float32 and finite. They may be
            mapped from the file: copy them before the file is written again.
        notes: What was done to get there, in words for the user.
    """

    state_dict: dict[str, Tensor]
    notes: tuple[str, ...]


def read_weights(path: Path, *, trust_pickle: bool = False) -> Weights:
    """Read the weights from a checkpoint, without running any code from it.

    Args:
        path: A file of ``torch.save`` (zip or legacy) or safetensors.
        trust_pickle: Let a file that asks for code run it. Only for files of one's own making.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind; asks for code; holds no
            weights; or holds NaN or infinite ones.
        DependencyError: It is a safetensors file and safetensors is missing.
    """
    entry, notes = find_weights(load_checkpoint(path, trust_pickle=trust_pickle), path)
    tensors, more = named_tensors(entry)
    notes += more
    tensors, more = _as_float32(tensors, path)
    notes += more
    _check_finite(tensors, path)
    return Weights(tensors, tuple(notes))


def load_checkpoint(path: Path, *, trust_pickle: bool = False) -> object:
    """Load what a checkpoint's file holds, whatever that is, without running any code from it.

    Args:
        path: See :func:`read_weights`, as for what is raised.
        trust_pickle: Let a file that asks for code run it.
    """
    container = container_of(path)
    if container == "safetensors":
        return _load_safetensors(path)
    return _load_torch(path, container, trust_pickle=trust_pickle)


def named_tensors(entry: Entry) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of an entry under the names that the network itself gave them.

    Returns:
        Names to tensors, and notes for the user on what was left out or taken off.
    """
    tensors, notes = _tensors(entry)
    tensors, more = _unwrapped(tensors)
    return tensors, notes + more


def _load_safetensors(path: Path) -> object:
    reader = need("safetensors.torch")
    error_type: type[Exception] = need("safetensors").SafetensorError
    try:
        loaded: object = reader.load_file(path, device="cpu")
    except (error_type, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return loaded


def _load_torch(path: Path, container: Container, *, trust_pickle: bool) -> object:
    try:
        with torch.serialization.safe_globals(stand_ins()):
            return _torch_load(path, container)
    except pickle.UnpicklingError as error:
        asked = NEEDS_CODE.search(str(error))
        if asked is None:
            raise _damaged(path, error) from error
        if not trust_pickle:
            named = f" ({asked['name']})" if asked["name"] else ""
            raise CheckpointError(
                f"{path} holds more than weights: loading it would run code{named}.",
                hint="Save the weights alone: torch.save(model.state_dict(), 'weights.pth'). "
                "If you made this file yourself, --trust-pickle loads it as it is.",
            ) from error
    except DAMAGED as error:
        raise _damaged(path, error) from error
    return _load_trusted(path)


def _torch_load(path: Path, container: Container) -> object:
    # Mapped, the weights take no memory of their own; torch maps by name, which must be ASCII
    # to be safe on every Windows.
    if container == "zip" and str(path).isascii():
        mapped: object = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return mapped
    with path.open("rb") as file:
        loaded: object = torch.load(file, map_location="cpu", weights_only=True)
        return loaded


def _load_trusted(path: Path) -> object:
    step = functools.partial(_unpickle, path)
    try:
        return run_user_code(step, Path.cwd(), str(path), "loaded")
    except ArchitectureError as error:
        raise CheckpointError(
            error.message,
            hint="The code that the file needs must only define the network: put the rest under "
            "'if __name__ == \"__main__\":', or save the weights alone: "
            "torch.save(model.state_dict(), 'weights.pth').",
        ) from error


def _unpickle(path: Path) -> object:
    try:
        with path.open("rb") as file:
            # The user vouches for this file, with an option that says so.
            loaded: object = torch.load(file, map_location="cpu", weights_only=False)
            return loaded
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path} needs code that is not found here: {error}.",
            hint="Run from the folder that has the code, or save the weights alone there: "
            "torch.save(model.state_dict(), 'weights.pth').",
        ) from error
    except Exception as error:
        if is_raised_by(error, Path.cwd()):
            raise
        raise _damaged(path, error) from error


def _tensors(entry: Entry) -> tuple[dict[str, Tensor], list[str]]:
    tensors = {k: v.detach() for k, v in entry.values.items() if isinstance(v, Tensor)}
    others = [str(key) for key in entry.values if key not in tensors]
    notes = [f"left out what is no tensor: {_first(others)}"] if others else []
    return tensors, notes


def _unwrapped(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    notes = []
    averaged = tensors.keys() - {AVERAGE_COUNT}
    if AVERAGE_COUNT in tensors and all(name.startswith("module.") for name in averaged):
        tensors = {name: tensor for name, tensor in tensors.items() if name != AVERAGE_COUNT}
        notes.append(f"entry '{AVERAGE_COUNT}' of an averaged model left out")
    removed = ""
    while prefix := next((w for w in WRAPPERS if all(n.startswith(f"{w}.") for n in tensors)), ""):
        tensors = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}
        removed += f"{prefix}."
    if removed:
        notes.append(f"prefix '{removed}' removed")
    return tensors, notes


def _as_float32(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    odd = [n for n, t in tensors.items() if t.is_quantized or t.layout != torch.strided]
    if odd:
        raise CheckpointError(
            f"{path} holds quantised or sparse weights: {_first(odd)}.",
            hint="Give the checkpoint from before quantisation or pruning.",
        )
    converted = {
        str(tensor.dtype).removeprefix("torch.")
        for tensor in tensors.values()
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    }
    floats = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    notes = [f"{name} weights converted to float32" for name in sorted(converted)]
    return floats, notes


def _check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    # The extremes of a tensor with a NaN are NaN: one pass, and no mask as large as the weights.
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        and tensor.numel()
        and not all(torch.isfinite(extreme) for extreme in torch.aminmax(tensor))
    ]
    if bad:
        raise CheckpointError(
            f"{len(bad)} of {len(tensors)} entries in {path} have NaN or infinite values: "
            f"{_first(bad)}.",
            hint="Training diverged, or float16 overflowed: give a checkpoint from before that.",
        )


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    return CheckpointError(
        f"{path} is cut short or damaged: {reason or type(error).__name__}.", hint=AGAIN
    )
