"""Reading a checkpoint: whatever training saved becomes one plain ``state_dict`` in float32."""

from __future__ import annotations

import functools
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from deploykit.errors import ArchitectureError, CheckpointError
from deploykit.models.file_kinds import AGAIN, Container, container_of
from deploykit.models.user_code import is_raised_by, run_user_code
from deploykit.system.deps import need

#: Names that DataParallel, torch.compile, FSDP and checkpointing put around a module.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
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
        name: Their entry in the checkpoint, ``model.state_dict``; empty for the checkpoint itself.
        rank: Where that name stands among the usual ones; lower is taken first.
        state_dict: Names to CPU tensors; floating-point ones are float32. They may be mapped from
            the file: copy them before the file is written again.
        notes: What was done to get there, in words for the user.
    """

    name: str
    rank: tuple[int, ...]
    state_dict: dict[str, Tensor]
    notes: tuple[str, ...]


def read_weights(path: Path, *, trust_pickle: bool = False) -> tuple[Weights, ...]:
    """Read every set of weights in a checkpoint, without running any code from it.

    Args:
        path: A file of ``torch.save`` (zip or legacy) or safetensors.
        trust_pickle: Let a file that asks for code run it. Only for files of one's own making.

    Returns:
        One or more, those under the usual names first.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind; asks for code; holds no
            weights, or none but quantised or sparse ones.
        DependencyError: It is a safetensors file and safetensors is missing.
    """
    entries = find_entries(load_checkpoint(path, trust_pickle=trust_pickle), path)
    usable = [weights for entry in entries if isinstance(weights := _weights(entry), Weights)]
    if not usable:
        odd = _weights(entries[0])
        raise CheckpointError(
            f"{path} holds quantised or sparse weights: {odd}.",
            hint="Give the checkpoint from before quantisation or pruning.",
        )
    return tuple(usable)


def _weights(entry: Entry) -> Weights | str:
    """The weights of an entry; or the names of those that are quantised or sparse."""
    tensors, notes = named_tensors(entry)
    odd = [n for n, t in tensors.items() if t.is_quantized or t.layout != torch.strided]
    if odd:
        return _first(odd)
    converted = {
        str(tensor.dtype).removeprefix("torch.")
        for tensor in tensors.values()
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    }
    notes += [f"{name} weights converted to float32" for name in sorted(converted)]
    if entry.trail:
        notes.insert(0, f"taken from the entry '{entry.name}'")
    floats = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    return Weights(entry.name, entry.rank, floats, tuple(notes))


def load_checkpoint(path: Path, *, trust_pickle: bool = False) -> object:
    """Load what a checkpoint's file holds, whatever that is, without running any code from it.

    Args:
        path: See :func:`read_weights`, as for what is raised.
        trust_pickle: Let a file that asks for code run it.
    """
    container = container_of(path)
    if container != "safetensors":
        return _load_torch(path, container, trust_pickle=trust_pickle)
    reader = need("safetensors.torch")
    error_type: type[Exception] = need("safetensors").SafetensorError
    try:
        loaded: object = reader.load_file(path, device="cpu")
    except (error_type, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return loaded


def named_tensors(entry: Entry) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of an entry under the names that the network itself gave them.

    Returns:
        Names to tensors, and notes for the user on what was skipped or taken off.
    """
    tensors = {k: v.detach() for k, v in entry.values.items() if isinstance(v, Tensor)}
    others = [
        str(key)
        for key, value in entry.values.items()
        if key not in tensors and not isinstance(value, Mapping)
    ]
    notes = [f"skipped what is no tensor: {_first(others)}"] if others else []
    averaged = tensors.keys() - {AVERAGE_COUNT}
    if AVERAGE_COUNT in tensors and all(name.startswith("module.") for name in averaged):
        del tensors[AVERAGE_COUNT]
        notes.append(f"entry '{AVERAGE_COUNT}' of an averaged model skipped")
    removed = ""
    while prefix := next((w for w in WRAPPERS if all(n.startswith(f"{w}.") for n in tensors)), ""):
        tensors = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}
        removed += f"{prefix}."
    if removed:
        notes.append(f"prefix '{removed}' removed")
    return tensors, notes


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no infinity; True of sparse ones and of other types."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided or not tensor.numel():
        return True
    # The extremes of a tensor with a NaN are NaN: one pass, and no mask as large as the weights.
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor.float()))


def _load_torch(path: Path, container: Container, *, trust_pickle: bool) -> object:
    try:
        with torch.serialization.safe_globals(_stand_ins()):
            # Mapped, the weights take no memory of their own; torch maps by name, which must be
            # ASCII to be safe on every Windows.
            if container == "zip" and str(path).isascii():
                mapped: object = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                return mapped
            with path.open("rb") as file:
                loaded: object = torch.load(file, map_location="cpu", weights_only=True)
                return loaded
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


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    return CheckpointError(
        f"{path} is cut short or damaged: {reason or type(error).__name__}.", hint=AGAIN
    )


#: Entries that hold weights; of several that fit the first is taken. The trained weights come
#: before their moving average, because ``model.load_state_dict(file["model"])`` is what scripts do.
WEIGHT_ENTRIES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "params_ema",
)


@dataclass(frozen=True)
class Entry:
    """A mapping of names to tensors in a checkpoint.

    Attributes:
        trail: The entries that lead to it; empty for the checkpoint itself.
        values: The mapping; what is no tensor in it is not a weight.
    """

    trail: tuple[str, ...]
    values: Mapping[str, object]

    @property
    def name(self) -> str:
        """The trail for people: ``model.state_dict``."""
        return ".".join(self.trail)

    @property
    def rank(self) -> tuple[int, ...]:
        """Where it stands among the usual names; lower is taken first."""
        known = {name: rank for rank, name in enumerate(WEIGHT_ENTRIES)}
        return tuple(known.get(step, len(known)) for step in self.trail)


def find_entries(loaded: object, path: Path) -> list[Entry]:
    """Find the entries that hold weights, those under the usual names first.

    Args:
        loaded: What the file holds.
        path: The file, for the messages.

    Raises:
        CheckpointError: No entry holds weights.
    """
    entries = sorted(_entries(loaded), key=lambda entry: entry.rank)
    if not entries:
        if not isinstance(loaded, Mapping):
            found = f"an object of type {type(loaded).__name__}, not weights"
        elif _is_optimizer(loaded):
            found = "an optimizer's state, not a network's"
        else:
            names = ", ".join(str(key) for key in list(loaded)[:6]) or "none"
            found = f"no weights; its entries: {names}"
        raise CheckpointError(
            f"{path} holds {found}.",
            hint="Save the weights: torch.save(model.state_dict(), 'weights.pth').",
        )
    return entries


def _entries(value: object, trail: tuple[str, ...] = ()) -> Iterator[Entry]:
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or _is_optimizer(value):
        return
    inner = [entry for key, child in value.items() for entry in _entries(child, (*trail, str(key)))]
    yield from inner
    own, most = _tensor_count(value), max((_tensor_count(each.values) for each in inner), default=0)
    # A few tensors beside a whole network's are what training kept: class weights, loss centers.
    if own > 0 and 2 * own > most:
        yield Entry(trail, value)


def _tensor_count(value: Mapping[Any, object]) -> int:
    """How many tensors have a name; one without dimensions is a loss or an accuracy."""
    named = (child for key, child in value.items() if isinstance(key, str))
    return sum(isinstance(child, Tensor) and child.ndim > 0 for child in named)


def _is_optimizer(value: Mapping[object, object]) -> bool:
    return "param_groups" in value and "state" in value


#: How pickles name what a stand-in takes the place of.
STAND_IN_NAMES = (
    "argparse.Namespace",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",  # before numpy 2
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",  # Python 3.13
    "pathlib._local.WindowsPath",
    # What a defaultdict is usually made with.
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
)


class StandIn:
    """An empty object that takes any arguments and any state, and keeps neither."""

    def __new__(cls, *_args: object) -> Self:
        """Make it, whatever the original needs."""
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        """Forget the original's state."""


def _stand_ins() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """What ``torch.serialization.safe_globals`` takes: each stand-in, and the name it answers to.

    A class a name, so that a message on the object says what it was.
    """
    inert = [(type(name.rpartition(".")[2], (StandIn,), {}), name) for name in STAND_IN_NAMES]
    return [*inert, (_plain_dict, "collections.defaultdict")]


def _plain_dict(*_args: object) -> dict[object, object]:
    # torch's restricted unpickler fills a plain dictionary, but not a defaultdict.
    return {}
