"""What a checkpoint holds, as sets of weights by the entries that they lie under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from deploykit.errors import CheckpointError
from deploykit.models.pickled import Unusable
from deploykit.models.torch_file import unusable_type

#: Names that DataParallel, torch.compile, FSDP and checkpointing put around a module.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: torch.optim.swa_utils.AveragedModel counts here beside the ``module.`` it averages.
AVERAGE_COUNT = "n_averaged"
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
#: Weights lie a few entries deep; whoever nests deeper wants a reader that never ends.
_DEPTH = 16
_MOST_LOOKED_THROUGH = 100_000
_MOST_SHOWN = 40
_LONGEST_NAME = 500


@dataclass(frozen=True)
class Entry:
    """A mapping of names to tensors in a checkpoint.

    Attributes:
        trail: The entries that lead to it; empty for the checkpoint itself.
        values: The mapping; what is no tensor in it is not a weight.
    """

    trail: tuple[str, ...]
    values: Mapping[object, object]

    @property
    def name(self) -> str:
        """The trail for people: ``model.state_dict``."""
        return ".".join(self.trail)

    @property
    def rank(self) -> tuple[int, ...]:
        """Where it stands among the usual names; lower is taken first."""
        known = {name: rank for rank, name in enumerate(WEIGHT_ENTRIES)}
        return tuple(known.get(step, len(known)) for step in self.trail)

    @property
    def reason(self) -> str:
        """Why no network can be given these weights: ``fc.weight is complex``; else empty."""
        reasons = (
            f"{name} is {reason}"
            for name, value in self.values.items()
            if _is_name(name) and (reason := _unusable_reason(value))
        )
        return next(reasons, "")


def _is_name(key: object) -> TypeGuard[str]:
    """Whether a key can be a weight's name; one that moves a terminal's cursor cannot."""
    return isinstance(key, str) and len(key) <= _LONGEST_NAME and key.isprintable()


def _shown(key: object) -> str:
    """A key for people."""
    text = str(key) if isinstance(key, (str, int)) else getattr(key, "kind", type(key).__name__)
    return (text if text.isprintable() else ascii(text)[1:-1])[:_MOST_SHOWN]


def _unusable_reason(value: object) -> str:
    if isinstance(value, Unusable):
        return value.reason
    if not isinstance(value, Tensor):
        return ""
    if is_lazy(value):
        return "not initialised"
    if value.is_meta:
        return "a meta tensor, which has no values"
    if value.layout != torch.strided:
        return "sparse"
    return unusable_type(value.dtype)


def find_entries(loaded: object, path: Path) -> list[Entry]:
    """Find the entries that hold weights, those under the usual names first.

    Args:
        loaded: What the file holds.
        path: The file, for the messages.

    Returns:
        One or more, of which a network can be given at least one; the others have a reason.

    Raises:
        CheckpointError: There is none that a network can be given.
    """
    entries = sorted(_entries(loaded, (), set()), key=lambda entry: entry.rank)
    if any(not entry.reason for entry in entries):
        return entries
    if entries:
        raise unusable_weights(path, entries[0].reason)
    if not isinstance(loaded, Mapping):
        found = f"an object of type {getattr(loaded, 'kind', type(loaded).__name__)}, not weights"
    elif _is_optimizer(loaded):
        found = "an optimizer's state, not a network's"
    else:
        names = ", ".join(map(_shown, list(loaded)[:6])) or "none"
        found = f"no weights; its entries: {names}"
    raise CheckpointError(
        f"{path} holds {found}.",
        hint="Save the weights: torch.save(model.state_dict(), 'weights.pth').",
    )


def unusable_weights(path: Path, reason: str) -> CheckpointError:
    """The error for weights that no network can be given; see :attr:`Entry.reason`."""
    return CheckpointError(
        f"{path} holds weights that no network can be given: {reason}.",
        hint="Save real and dense weights with values, from before quantisation or pruning: "
        "torch.save(model.state_dict(), 'weights.pth').",
    )


def _entries(value: object, trail: tuple[str, ...], seen: set[int]) -> list[Entry]:
    """The entries in a value, of which each is looked through once: it may hold itself."""
    if not isinstance(value, (Mapping, list, tuple)) or id(value) in seen:
        return []
    if not value or len(trail) > _DEPTH or len(seen) > _MOST_LOOKED_THROUGH:
        return []
    seen.add(id(value))
    if isinstance(value, Mapping) and _is_optimizer(value):
        return []
    inner = [
        entry for key, child in _children(value) for entry in _entries(child, (*trail, key), seen)
    ]
    if not isinstance(value, Mapping):
        return inner
    own, most = _tensor_count(value), max((_tensor_count(each.values) for each in inner), default=0)
    # A few tensors beside a whole network's are what training kept: class weights, loss centers.
    return [*inner, Entry(trail, value)] if own > 0 and 2 * own > most else inner


def _children(
    value: Mapping[object, object] | list[object] | tuple[object, ...],
) -> Iterator[tuple[str, object]]:
    """What a value holds, usual names first: one dictionary may stand under two of them."""
    if isinstance(value, Mapping):
        usual = [name for name in WEIGHT_ENTRIES if name in value]
        yield from ((name, value[name]) for name in usual)
        yield from ((_shown(key), child) for key, child in value.items() if key not in usual)
    else:
        yield from ((str(number), child) for number, child in enumerate(value))


def _tensor_count(value: Mapping[object, object]) -> int:
    """How many tensors have a name; one without dimensions is a loss or an accuracy."""
    named = (child for key, child in value.items() if _is_name(key))
    return sum(
        isinstance(child, Unusable)
        or (isinstance(child, Tensor) and (is_lazy(child) or child.ndim > 0))
        for child in named
    )


def _is_optimizer(value: Mapping[object, object]) -> bool:
    return "param_groups" in value and "state" in value


def named_tensors(entry: Entry) -> tuple[dict[str, Tensor], dict[str, int], list[str]]:
    """The tensors of an entry under the names that the network itself gave them.

    Returns:
        Names to tensors; the versions of layers, by their paths, where the file has them; and notes
        for the user on what was skipped or taken off.
    """
    notes = [f"taken from the entry '{entry.name}'"] if entry.trail else []
    values = {k: v for k, v in entry.values.items() if not isinstance(v, Mapping)}
    others = [_shown(k) for k, v in values.items() if not isinstance(v, Tensor)]
    if others:
        more = " ..." if len(others) > 3 else ""
        notes.append(f"skipped what is no tensor: {', '.join(others[:3])}{more}")
    all_tensors = {key: v.detach() for key, v in values.items() if isinstance(v, Tensor)}
    tensors = {key: v for key, v in all_tensors.items() if _is_name(key)}
    if unnamed := len(all_tensors) - len(tensors):
        notes.append(f"skipped {unnamed} tensors whose keys are no names")
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
    found = getattr(entry.values, "_metadata", None)
    versions = {
        f"{path}.".removeprefix(removed).rstrip("."): facts["version"]
        for path, facts in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(path, str) and isinstance(facts, Mapping)
        if f"{path}.".startswith(removed) and isinstance(facts.get("version"), int)
    }
    return tensors, versions, notes


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no infinity; True of whole numbers."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # The extremes of a tensor with a NaN are NaN: one pass, and no mask as large as the weights.
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor.float()))
