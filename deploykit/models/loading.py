"""From an architecture and a checkpoint to a network that is ready to be deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint import Weights, read_weights
from deploykit.models.class_count import count_classes, find_head, shapes_of
from deploykit.models.factory import NO_ARGUMENTS
from deploykit.models.fast_build import SkippingRandomInit
from deploykit.models.mismatch import Mismatch, Shapes, compare
from deploykit.models.names import align_names
from deploykit.models.registry import Architecture


@dataclass(frozen=True)
class LoadedModel:
    """A trained network.

    Attributes:
        module: In eval mode, on the CPU, in float32, without gradients.
        num_classes: The number of logits.
        parameters: How many numbers were trained.
        notes: What the user should know about how it was loaded.
    """

    module: nn.Module
    num_classes: int
    parameters: int
    notes: tuple[str, ...]


def load_model(
    architecture: Architecture,
    path: Path,
    *,
    arch_args: Mapping[str, object] = NO_ARGUMENTS,
    trust_pickle: bool = False,
) -> LoadedModel:
    """Load a checkpoint into an architecture; every weight must fit.

    Args:
        architecture: What was trained.
        path: The checkpoint.
        arch_args: Further arguments of the architecture.
        trust_pickle: Let a checkpoint that asks for code run it.

    Raises:
        CheckpointError: The file cannot be read, or its weights do not fit the architecture.
        UsageError: The architecture does not take ``arch_args``.
        ArchitectureError: The user's code does not make a network.
        DependencyError: The file is of a kind that needs a package that is missing.
    """
    weights = read_weights(path, trust_pickle=trust_pickle)
    head = find_head(architecture, arch_args)
    state, notes = _named_for_network(weights, head.shapes, architecture.training_only)
    found: Shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    count = count_classes(head, found)
    if count is None:
        raise _misfit(architecture, path, compare(found, head.shapes))
    with SkippingRandomInit():
        module = architecture.build(count, arch_args)
    mismatch = compare(found, shapes_of(module, architecture.name))
    if mismatch:
        raise _misfit(architecture, path, mismatch)
    _fill(module, state, architecture, path)
    notes += [advice for key, advice in architecture.undecided.items() if key not in arch_args]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return LoadedModel(module, count, parameters, tuple(notes))


def _named_for_network(
    weights: Weights, expected: Shapes, training_only: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[str]]:
    aligned = align_names(weights.state_dict, expected)
    state = {aligned.names[name]: tensor for name, tensor in weights.state_dict.items()}
    notes = [*weights.notes, *([aligned.note] if aligned.note else [])]
    unused = [name for name in state if name.startswith(training_only)] if training_only else []
    for name in unused:
        del state[name]
    if unused:
        prefixes = ", ".join(f"'{prefix}'" for prefix in training_only)
        notes.append(f"left out {len(unused)} entries that only training uses: {prefixes}")
    return state, notes


def _fill(
    module: nn.Module, state: Mapping[str, Tensor], architecture: Architecture, path: Path
) -> None:
    module.to("cpu", torch.float32)
    # The network's own dictionary has the versions of its layers, which some of them ask for, and
    # the entries that a file may lack.
    complete = module.state_dict()
    complete.update(state)
    try:
        module.load_state_dict(complete, strict=True)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{architecture.name} refuses the weights in {path}: {error}",
            hint="Name the architecture that was trained, with the --arch-arg values it had.",
        ) from error
    module.eval()
    module.requires_grad_(requires_grad=False)


def _misfit(architecture: Architecture, path: Path, mismatch: Mismatch) -> CheckpointError:
    message = f"{path} does not fit {architecture.name}: {mismatch.message}"
    return CheckpointError(message, hint=mismatch.hint)
