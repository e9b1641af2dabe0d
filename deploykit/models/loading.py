"""From an architecture and a checkpoint to a network: names, shapes and classes must fit."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from deploykit.errors import ArchitectureError, CheckpointError, UsageError
from deploykit.models.checkpoint import Weights, read_weights
from deploykit.models.entries import is_finite, unusable_weights
from deploykit.models.heads import Activation, give_logits, said_head
from deploykit.models.mismatch import OPTIONAL, Mismatch, Shapes, compare, grouped
from deploykit.models.names import align_names
from deploykit.models.probe import count_outputs, feed_grey
from deploykit.models.registry import NO_ARGUMENTS, Architecture
from deploykit.specs.heads import HeadName
from deploykit.specs.model import names_user_code
from deploykit.specs.preprocessing import Size
from deploykit.system.code_lines import failure_text
from deploykit.system.text import command_line, counted

#: The in-place steps of torch's and timm's random initialisations.
RANDOM_FILLS = frozenset(
    {
        "add_",
        "clamp_",
        "erfinv_",
        "kaiming_normal_",
        "kaiming_uniform_",
        "mul_",
        "normal_",
        "uniform_",
    }
)


class SkippingRandomInit(TorchFunctionMode):
    """Within it, parameters are made but not filled.

    For 83 million parameters this takes 0.03 s where drawing them takes 1.4 s. Unlike building on
    the meta device, all else is real: buffers, constants, what a constructor computes.
    Only for a network whose every parameter is loaded afterwards.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Return a parameter as it is where a random fill of it is asked for."""
        del types
        named = kwargs or {}
        target = args[0] if args else named.get("tensor")
        if isinstance(target, nn.Parameter) and func.__name__ in RANDOM_FILLS:
            return target
        return func(*args, **named)


#: No more sets of weights that fit, beside the one that is taken, are looked for.
_MOST_ALIKE = 8
PROBE_CLASSES = 10


@dataclass(frozen=True)
class Head:
    """Where in a network's weights the number of classes shows.

    Attributes:
        shapes: The shapes of the network with ``PROBE_CLASSES`` classes.
        growth: By how much each dimension of an entry grows with one more class, for those that
            do; empty for a network that decides the number itself.
    """

    shapes: Shapes
    growth: Shapes


def find_head(architecture: Architecture, arch_args: Mapping[str, object]) -> Head:
    """Build a network with two numbers of classes, and see which shapes differ.

    Raises:
        UsageError, ArchitectureError: The network cannot be built.
    """
    with SkippingRandomInit():
        module = architecture.build(PROBE_CLASSES, arch_args)
        wider = architecture.build(PROBE_CLASSES + 1, arch_args)
    shapes, more = shapes_of(module, architecture.name), shapes_of(wider, architecture.name)
    growth = {
        name: tuple(b - a for a, b in zip(shape, more[name], strict=True))
        for name, shape in shapes.items()
        if name in more and len(more[name]) == len(shape) and more[name] != shape
    }
    return Head(shapes, growth)


def count_classes(head: Head, found: Shapes) -> int | None:
    """Read the number of classes off a checkpoint's shapes.

    Args:
        head: Where the number shows.
        found: The checkpoint's shapes, under the network's names.

    Returns:
        The number; None when the checkpoint has none of the entries that show it.

    Raises:
        CheckpointError: The entries disagree, or there is not one.
    """
    counts = {
        name: PROBE_CLASSES + (size - before) // step
        for name, steps in head.growth.items()
        if _grows_to(head.shapes[name], steps, found.get(name, ()))
        for size, before, step in zip(found[name], head.shapes[name], steps, strict=True)
        if step
    }
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} says {count}" for name, count in counts.items())
        raise CheckpointError(
            f"The weights disagree on the number of classes: {said}.",
            hint="Check that the architecture is the one that was trained.",
        )
    count = next(iter(counts.values()), None)
    if count is not None:
        _check_count(count)
    return count


def _grows_to(shape: Sequence[int], steps: Sequence[int], found: Sequence[int]) -> bool:
    """Whether only the dimensions that grow with the classes differ."""
    return len(found) == len(steps) and all(
        step or size == before for size, before, step in zip(found, shape, steps, strict=True)
    )


def _check_count(count: int) -> None:
    if count < 1:
        raise CheckpointError(
            f"There are no classes to choose among: the network's logits an image are {count}."
        )


def shapes_of(module: nn.Module, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's weights.

    Raises:
        ArchitectureError: It has layers whose shapes only a first batch decides.
    """
    tensors = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    lazy = [key for key, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise ArchitectureError(
            f"{name} has lazy layers, whose shapes are not known before the first batch: "
            f"{', '.join(lazy[:3])}.",
            hint="In the function that makes it, call it once before returning it: "
            "model(torch.zeros(1, 3, HEIGHT, WIDTH)).",
        )
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


@dataclass(frozen=True)
class LoadedModel:
    """A trained network.

    Attributes:
        module: In eval mode, on the CPU, in float32, without gradients.
        num_classes: The number of logits.
        parameters: How many numbers were trained.
        weights: The checkpoint's entry that was loaded; empty for the checkpoint itself.
        notes: What the user should know about how it was loaded.
        takes_grey: Whether it takes one channel. The module takes RGB all the same, and makes it
            grey itself.
        activation: What its forward ends in, and the module now leaves out; empty for none.
        head: What the checkpoint or the network says that the answers mean; None if nothing.
    """

    module: nn.Module
    num_classes: int
    parameters: int
    weights: str
    notes: tuple[str, ...]
    takes_grey: bool
    activation: Activation
    head: HeadName | None


def load_model(
    architecture: Architecture,
    path: Path,
    input_size: Size,
    *,
    arch_args: Mapping[str, object] = NO_ARGUMENTS,
    weights: str | None = None,
    trust_pickle: bool = False,
) -> LoadedModel:
    """Load a checkpoint into an architecture; every weight that the network has must be there.

    Whether weights fit is what ``load_state_dict`` of the network says, whose hooks may rename.

    Args:
        architecture: What was trained.
        path: The checkpoint.
        input_size: H and W of the images that the network takes.
        arch_args: Further arguments of the architecture.
        weights: The entry to load; None for the one that fits.
        trust_pickle: Let a checkpoint that asks for code run it.

    Raises:
        CheckpointError: The file cannot be read, or its weights do not fit the architecture, or
            have NaN or infinite values.
        UsageError: The architecture does not take ``arch_args``, or there is no such entry.
        ArchitectureError: The user's code does not make a network.
        DependencyError: The file is of a kind that needs a package that is missing.
    """
    own = architecture.name if names_user_code(architecture.name) else ""
    sets = _named(read_weights(path, trust_pickle=trust_pickle, arch=own), weights, path)
    head = find_head(architecture, arch_args)
    fit = functools.partial(_fitted, architecture, arch_args, head, path)
    chosen, (module, count, notes) = _chosen(sets, fit, path)
    takes_grey = feed_grey(module, input_size)
    activation = give_logits(module, input_size)
    if count is None:
        count = count_outputs(module, input_size)
        _check_count(count)
    notes += [advice for key, advice in architecture.undecided.items() if key not in arch_args]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return LoadedModel(
        module=module,
        num_classes=count,
        parameters=parameters,
        weights=chosen,
        notes=tuple(notes),
        takes_grey=takes_grey,
        activation=activation,
        head=sets[0].head or said_head(getattr(module, "config", None)),
    )


def _named(sets: tuple[Weights, ...], weights: str | None, path: Path) -> tuple[Weights, ...]:
    """The sets that the user means, one or more."""
    if weights is None:
        return sets
    named = tuple(each for each in sets if each.name == weights)
    if named:
        return named
    has = ", ".join(f"{each.name!r}{' (the file itself)' * (not each.name)}" for each in sets)
    raise UsageError(
        f"{path} has no weights {weights!r}.",
        hint=f"It has: {has}."
        if any(each.name for each in sets)
        else "The file itself is its only set of weights: leave out --weights.",
    )


_Fitted: TypeAlias = tuple[nn.Module, int | None, list[str]]


class _OtherNetworkError(CheckpointError):
    """Weights with less than half of the network's: nobody would expect that they are taken."""


def _chosen(
    sets: Sequence[Weights], fit: Callable[[Weights], _Fitted], path: Path
) -> tuple[str, _Fitted]:
    """The name of the first set that fits and what is made of it, with notes on the others.

    Raises:
        CheckpointError: None fits; or several do, of which none comes first.
    """
    errors: dict[int, CheckpointError] = {}

    def made_of(place: int) -> _Fitted | None:
        try:
            return fit(sets[place])
        except CheckpointError as error:
            errors[place] = error
            return None

    tried = ((place, made_of(place)) for place in range(len(sets)))
    first, made = next(((place, made) for place, made in tried if made), (0, None))
    if made is None:
        near = (error for error in errors.values() if not isinstance(error, _OtherNetworkError))
        raise next(near, errors[0])
    name, rank, notes = sets[first].name, sets[first].rank, made[2]
    # Those before it do not fit. The others are tried, too: their names alone would not tell.
    later = filter(made_of, range(first + 1, len(sets)))
    alike = [sets[place] for place in itertools.islice(later, _MOST_ALIKE)]
    if alike and alike[0].rank == rank:
        names = ", ".join([name, *(other.name for other in alike)])
        raise CheckpointError(
            f"{path} holds several sets of weights that fit: {names}.",
            hint=f"Name one: {command_line(['--weights', name])}",
        )
    for place, error in errors.items():
        other = sets[place]
        if other.rank <= rank and not isinstance(error, _OtherNetworkError):
            what = f"entry {other.name!r}" if other.name else "file itself"
            reason = " ".join(error.message.split())
            notes.append(f"the weights of the {what} are not taken: {reason}")
    if alike:
        options = " or ".join(command_line(["--weights", other.name]) for other in alike)
        notes.append(f"other weights in the file fit, too: {options}")
    return name, made


def _versions(
    versions: Mapping[str, int], names: Mapping[str, str]
) -> dict[str, dict[str, object]]:
    """The versions of layers by their paths in the network, as torch keeps them.

    Args:
        versions: By their paths in the checkpoint.
        names: Each weight's name in the checkpoint, to its name in the network.
    """
    found: dict[str, dict[str, object]] = {}
    for theirs, ours in names.items():
        inner, outer = theirs.split("."), ours.split(".")
        while inner and outer and inner.pop() == outer.pop():
            version = versions.get(".".join(inner))
            if version is not None:
                found[".".join(outer)] = {"version": version}
    return found


def _check_told(architecture: Architecture, told: str, path: Path) -> None:
    """Refuse another network of the zoo than a file tells: its weights may fit all the same."""
    if architecture.origin == "zoo" and told not in ("", architecture.name):
        raise CheckpointError(
            f"{path} holds the weights of {told}, not of {architecture.name}.",
            hint=f"Name it: --arch {told}",
        )


def _fitted(
    architecture: Architecture,
    arch_args: Mapping[str, object],
    head: Head,
    path: Path,
    weights: Weights,
) -> _Fitted:
    """A network with these weights, its number of classes where shapes tell it, and notes.

    Raises:
        CheckpointError: They do not fit, or parameters are NaN or infinite.
        ArchitectureError: The network's own code fails.
    """
    if weights.reason:
        raise unusable_weights(path, weights.reason)
    _check_told(architecture, weights.arch, path)
    names, note = align_names(weights.state_dict, head.shapes)
    state = {names[name]: tensor for name, tensor in weights.state_dict.items()}
    notes = [*weights.notes, *([note] if note else [])]
    unused = [name for name in state if name.startswith(architecture.training_only)]
    for name in unused:
        del state[name]
    if unused:
        prefixes = ", ".join(f"'{prefix}'" for prefix in architecture.training_only)
        notes.append(f"skipped {len(unused)} entries that only training uses: {prefixes}")
    found: Shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    count = count_classes(head, found)
    if count is None and head.growth:
        raise _misfit(architecture, path, compare(found, head.shapes))
    with SkippingRandomInit():
        module = architecture.build(PROBE_CLASSES if count is None else count, arch_args)
    module.to("cpu", torch.float32)
    expected = shapes_of(module, architecture.name)
    if any(expected.get(n) == () and len(s) == 1 and s != (1,) for n, s in found.items()):
        # Some versions of torch take the first number of a longer list for a number.
        raise _misfit(architecture, path, compare(found, expected))
    # Some layers ask for their version: that of the file, or where it has none the network's own.
    given = module.state_dict()
    given.clear()
    given.update(state)
    versions = _versions(weights.versions, names)
    given._metadata.update(versions)  # type: ignore[attr-defined]  # noqa: SLF001  # torch's name
    try:
        missing, unexpected = module.load_state_dict(given, strict=False)
        # A hook may have taken the file's tensors as they are.
        module.to("cpu", torch.float32)
        module.eval()
        module.requires_grad_(requires_grad=False)
    except (Exception, SystemExit) as error:  # the network may be the user's code
        mismatch = compare(found, expected)
        if mismatch and not isinstance(error, SystemExit):
            raise _misfit(architecture, path, mismatch) from error
        raise CheckpointError(
            f"{architecture.name} does not take the weights in {path}: {failure_text(error)}",
            hint="Name the architecture that was trained, with the --arch-arg values it had.",
        ) from error
    extra = {name for name in unexpected if is_extra(name)}
    mismatch = Mismatch(
        missing=tuple(name for name in missing if not name.endswith(OPTIONAL)),
        unexpected=tuple(name for name in unexpected if name not in extra),
        misshapen=(),
        shared=len(state) - len(unexpected),
    )
    if mismatch:
        raise _misfit(architecture, path, mismatch)
    if extra:
        entries = f"{counted(len(extra), 'entry', 'entries')}, {grouped(sorted(extra))}"
        notes.append(f"not used: {entries}, which training kept beside the network's")
    _check_values(module, state, path)
    return module, count, notes


def _check_values(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise a CheckpointError for parameters that are whole numbers in the file, or no numbers."""
    parameters = dict(module.named_parameters())
    whole = [n for n in parameters if n in state and not state[n].is_floating_point()]
    if whole:
        raise CheckpointError(
            f"{path} has whole numbers for weights: {', '.join(whole[:3])}.",
            hint="Give the checkpoint from before quantisation.",
        )
    bad = [name for name, each in parameters.items() if not is_finite(each.detach())]
    if bad:
        raise CheckpointError(
            f"{len(bad)} of {len(state)} entries in {path} have NaN or infinite values: "
            f"{', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}.",
            hint="Training diverged, or float16 overflowed: give a checkpoint from before that.",
        )


#: What training keeps beside a network: the weights of a loss, metrics, centers; what profilers
#: count in each module; what observers for quantization saw.
_BESIDE = re.compile(
    r"(?:\w*(?:criterion|loss|metric|accuracy|centers)\w*|(?:train|val|valid|test)_\w+)(?:\.|$)"
    r"|(?:.*\.)?(?:total_ops|total_params|_extra_state|fake_quant_enabled|observer_enabled)$"
    r"|(?:.*\.)?(?:\w*activation_post_process\w*|\w*fake_quant\w*)\."
)
#: Weights in another form: what they are, and the call that makes them plain.
_MERGED_BY = (
    (
        re.compile(r"\.lora_[AB]\b|\.lora_embedding_"),
        "adapters (LoRA) beside the weights that they change",
        "Merge them before saving: model = model.merge_and_unload().",
    ),
    (
        re.compile(r"\.weight_mask$"),
        "pruned weights with their masks (weight_orig, weight_mask)",
        "Make them plain before saving: torch.nn.utils.prune.remove(layer, 'weight').",
    ),
)


def is_extra(name: str) -> bool:
    """Whether an entry that a network lacks is no part of any network."""
    return _BESIDE.match(name) is not None


def _misfit(architecture: Architecture, path: Path, mismatch: Mismatch) -> CheckpointError:
    for pattern, what, how in _MERGED_BY:
        if any(map(pattern.search, mismatch.unexpected)):
            return CheckpointError(f"{path} holds {what}.", hint=how)
    differing = (*mismatch.missing, *mismatch.unexpected, *(n for n, _, _ in mismatch.misshapen))
    changed = {name.partition(".")[0] for name in differing}
    hint = "Name the architecture that was trained, with the --arch-arg values it had."
    if not names_user_code(architecture.name):
        hint += f" This finds those that fit: {command_line(['deploykit', 'identify', str(path)])}"
    if mismatch.shared and len(changed) == 1:
        hint = (
            f"Only '{changed.pop()}' differs: if training changed that part, write a function "
            "that makes the network so, and name it: --arch path/to/file.py:function."
        )
    message = f"{path} does not fit {architecture.name}: {mismatch.message}"
    other = mismatch.shared < len(mismatch.missing) + len(mismatch.misshapen)
    return (_OtherNetworkError if other else CheckpointError)(message, hint=hint)
