"""Where in a loaded checkpoint the weights are: training loops wrap them in many ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from deploykit.errors import CheckpointError

#: Entries that hold weights, the first that a file has is taken. The trained weights come before
#: their moving average, because ``model.load_state_dict(file["model"])`` is what scripts do.
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


def find_weights(loaded: object, path: Path) -> tuple[Entry, list[str]]:
    """Find the entry that holds the weights.

    Args:
        loaded: What the file holds.
        path: The file, for the messages.

    Returns:
        The entry, and notes for the user on the choice.

    Raises:
        CheckpointError: No entry holds weights, or several do and none has a usual name.
    """
    entries = sorted(_entries(loaded), key=lambda entry: entry.rank)
    if not entries:
        raise _no_weights(loaded, path)
    best, others = entries[0], entries[1:]
    if others and best.rank == others[0].rank:
        names = ", ".join(repr(entry.name) for entry in entries)
        raise CheckpointError(
            f"{path} holds several sets of weights: {names}.",
            hint="Save the one to deploy alone: torch.save(torch.load(FILE)[NAME], 'weights.pth').",
        )
    notes = [f"taken from the entry '{best.name}'"] if best.trail else []
    if others:
        names = ", ".join(f"'{entry.name}'" for entry in others)
        notes.append(f"other weights in the file are not used: {names}")
    return best, notes


def _entries(value: object, trail: tuple[str, ...] = ()) -> Iterator[Entry]:
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or _is_optimizer(value):
        return
    inner = [entry for key, child in value.items() for entry in _entries(child, (*trail, str(key)))]
    if inner:
        yield from inner
    elif any(isinstance(key, str) and _is_weight(child) for key, child in value.items()):
        yield Entry(trail, value)


def _is_weight(value: object) -> bool:
    # A tensor without dimensions is a loss or an accuracy that was kept.
    return isinstance(value, Tensor) and value.ndim > 0


def _is_optimizer(value: Mapping[object, object]) -> bool:
    return "param_groups" in value and "state" in value


def _no_weights(loaded: object, path: Path) -> CheckpointError:
    hint = "Save the weights: torch.save(model.state_dict(), 'weights.pth')."
    if isinstance(loaded, Mapping) and _is_optimizer(loaded):
        return CheckpointError(f"{path} holds an optimizer's state, not a network's.", hint=hint)
    if not isinstance(loaded, Mapping):
        kind = type(loaded).__name__
        return CheckpointError(f"{path} holds an object of type {kind}, not weights.", hint=hint)
    names = ", ".join(str(key) for key in list(loaded)[:6]) or "none"
    return CheckpointError(f"{path} holds no weights; its entries: {names}.", hint=hint)
