"""Architectures by name: the zoo's, torchvision's, timm's and the user's own."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

from torch import nn

from deploykit.errors import ArchitectureError, DeploykitError, UsageError
from deploykit.models.user_code import CLASS_ARGUMENTS, user_callable
from deploykit.models.zoo import ENTRIES
from deploykit.specs.model import names_user_code
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.deps import need
from deploykit.system.text import command_line

NO_ARGUMENTS: Mapping[str, object] = MappingProxyType({})


Origin: TypeAlias = Literal["zoo", "torchvision", "timm", "user"]

#: torchvision's networks whose training adds classifiers that its eval mode does not use.
TRAINING_ONLY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}

#: Arguments of ``timm.create_model`` that download, read files, or make no classifier.
TIMM_RESERVED = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "features_only",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
        "scriptable",
    }
)


@dataclass(frozen=True)
class Architecture:
    """The function that makes a network.

    Attributes:
        name: Its canonical name: ``dpn92``, ``torchvision/densenet121``, ``timm/dpn92``,
            ``package.module:function``, ``path/to/file.py:Name``.
        origin: Whose it is.
        make: The function; called with keywords only.
        class_argument: The keyword for the number of classes; None where the function decides it.
        accepted: The keywords that it takes; None when it takes any.
        reserved: Keywords that are not the user's to give, whatever ``accepted`` says.
        required: The keywords that it cannot do without, the number of classes apart.
        preprocessing: What its training did to the images; None where the caller's preset holds.
        training_only: Prefixes of weights that a checkpoint may have and that eval does not use.
        undecided: Arguments that change the answers without a trace in the weights, and what the
            user should know about each.
    """

    name: str
    origin: Origin
    make: Callable[..., object] = field(repr=False)
    class_argument: str | None = "num_classes"
    accepted: frozenset[str] | None = None
    reserved: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    training_only: tuple[str, ...] = ()
    undecided: Mapping[str, str] = field(default_factory=dict)

    def build(self, num_classes: int, arch_args: Mapping[str, object] = NO_ARGUMENTS) -> nn.Module:
        """Make the network, randomly initialised.

        Args:
            num_classes: The number of logits; not used where the user's code takes none.
            arch_args: Further arguments of the function, as ``--arch-arg`` gives them.

        Raises:
            UsageError: An argument that the function does not take, or a value that it rejects.
            ArchitectureError: The function fails, or does not return a network.
        """
        arguments = self._arguments(num_classes, arch_args)
        try:
            module = self.make(**arguments)
        except DeploykitError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if arch_args:
                values = ", ".join(f"{key}={value!r}" for key, value in arch_args.items())
                raise UsageError(
                    f"{self.name} cannot be made with {values}: {reason}",
                    hint="Check the --arch-arg values.",
                ) from error
            raise ArchitectureError(
                f"{self.name} cannot be made: {reason}",
                hint="Update the library that it comes from, or choose another architecture.",
            ) from error
        if not isinstance(module, nn.Module):
            raise ArchitectureError(
                f"{self.name} returns {type(module).__name__}, not a torch.nn.Module.",
                hint="Name a class derived from nn.Module, or a function that returns the network.",
            )
        return module

    def _arguments(self, num_classes: int, arch_args: Mapping[str, object]) -> dict[str, object]:
        """The keywords of one call."""
        if self.class_argument in arch_args:
            raise UsageError(
                f"{self.class_argument} of {self.name} is not set by --arch-arg.",
                hint="Leave it out: the number of classes is read off the weights.",
            )
        allowed = frozenset(arch_args) if self.accepted is None else self.accepted
        unknown = sorted(arch_args.keys() - (allowed - self.reserved))
        if unknown:
            accepted = sorted(allowed - self.reserved - {self.class_argument, *unknown})
            raise UsageError(
                f"{self.name} takes no argument {', '.join(unknown)}.",
                hint=f"It takes: {', '.join(accepted)}." if accepted else "Leave it out.",
            )
        missing = [argument for argument in self.required if argument not in arch_args]
        if missing:
            given = ", ".join(f"{argument}=..." for argument in missing)
            options = " ".join(f"--arch-arg {argument}=VALUE" for argument in missing)
            has = "has no default" if len(missing) == 1 else "have no defaults"
            raise ArchitectureError(
                f"{self.name} needs {', '.join(missing)}, which {has}.",
                hint=f"Give it: {options}; or write a function that needs the number of classes "
                f"only, 'def make(num_classes): return {self.name.rpartition(':')[2]}({given})', "
                f"and name that: --arch FILE.py:make.",
            )
        counted = {self.class_argument: num_classes} if self.class_argument else {}
        return {**arch_args, **counted}


def _own_architecture(
    name: str,
    origin: Origin,
    make: Callable[..., object],
    preprocessing: Preprocessing | None = None,
) -> Architecture:
    """An architecture whose function's signature says what it takes.

    A function with ``**kwargs`` and none of the known names for the number of classes is taken to
    hand ``num_classes`` on.
    """
    try:
        parameters = inspect.signature(make).parameters.values()
    except (ValueError, TypeError):  # C code has no signature to read
        return Architecture(name, origin, make, preprocessing=preprocessing)
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    names = {p.name for p in named}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    fallback = CLASS_ARGUMENTS[0] if takes_any else None
    class_argument = next((each for each in CLASS_ARGUMENTS if each in names), fallback)
    return Architecture(
        name,
        origin,
        make,
        class_argument,
        accepted=None if takes_any else frozenset(names),
        required=tuple(p.name for p in named if p.default is p.empty and p.name != class_argument),
        preprocessing=preprocessing,
    )


def _arguments_of_result(make: Callable[..., object]) -> frozenset[str] | None:
    """The keywords of the class that a library's function says it returns; None when it takes any.

    torchvision's and timm's functions take ``**kwargs`` and hand them to that class. Their own
    named arguments (``weights``, ``pretrained``) ask for downloads and are no business of ours.
    """
    try:
        result = inspect.signature(make, eval_str=True).return_annotation
    except (NameError, ValueError, TypeError):  # it names types that only type checkers import
        return None
    if not isinstance(result, type) or result is inspect.Signature.empty:
        return None
    parameters = inspect.signature(result).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)


def resolve_architecture(name: str, *, allow_user_code: bool) -> Architecture:
    """Find an architecture; a bare name is the zoo's, else torchvision's.

    Args:
        name: See :class:`Architecture`.
        allow_user_code: Whether the name may be that of a file or module, which is then imported:
            only where whoever runs this has typed it, never where a bundle names it.

    Raises:
        UsageError: No architecture has this name, and the message has the closest that do; or it
            names code, which is not allowed.
        ArchitectureError: The name refers to the user's own code, which fails.
        DependencyError: torchvision or timm is needed and missing.
    """
    if names_user_code(name):
        if not allow_user_code:
            raise UsageError(
                f"{name} is code of its own, which runs only when it is named.",
                hint=f"Name it as well: {command_line(['--arch', name])}",
            )
        return _own_architecture(name, "user", user_callable(name))
    library, slash, model = name.partition("/")
    if slash and library == "timm":
        return _timm_architecture(name, model)
    if slash and library == "torchvision":
        return _torchvision_architecture(name, model)
    if name in ENTRIES:
        entry = ENTRIES[name]
        return _own_architecture(name, "zoo", entry.build, entry.preprocessing)
    return _torchvision_architecture(name, name)


def list_architectures() -> dict[Origin, list[str]]:
    """The canonical names that can be resolved here; timm's only where it is installed."""
    names: dict[Origin, list[str]] = {
        "zoo": sorted(ENTRIES),
        "torchvision": [f"torchvision/{model}" for model in _torchvision_names()],
    }
    if importlib.util.find_spec("timm") is not None:
        names["timm"] = [f"timm/{model}" for model in need("timm").list_models()]
    return names


def _torchvision_names() -> list[str]:
    models = need("torchvision.models")
    # Of this module alone: detection, segmentation, quantised and video networks have their own.
    names: list[str] = sorted(models.list_models(module=models))
    return names


def _torchvision_architecture(asked: str, model: str) -> Architecture:
    if model not in _torchvision_names():
        raise _unknown(asked)
    builder = need("torchvision.models").get_model_builder(model)
    fixed: dict[str, object] = {"weights": None}
    undecided: dict[str, str] = {}
    if model in TRAINING_ONLY:
        # Their slow initialisation is deprecated: not saying which one is wanted is a warning.
        fixed |= {"aux_logits": False, "init_weights": False}
        undecided["transform_input"] = (
            f"if training started from torchvision's pretrained {model}, its network also rescales "
            "its input: add --arch-arg transform_input=true"
        )
    return Architecture(
        f"torchvision/{model}",
        "torchvision",
        functools.partial(builder, **fixed),
        accepted=_arguments_of_result(builder),
        reserved=frozenset({*fixed, "progress", "weights_backbone"}),
        training_only=TRAINING_ONLY.get(model, ()),
        undecided=undecided,
    )


def _timm_architecture(asked: str, model: str) -> Architecture:
    timm = need("timm")
    if not timm.is_model(model):
        raise _unknown(asked)
    try:
        timm.get_pretrained_cfg(model)
    except RuntimeError as error:  # NAME.TAG with a tag that it does not have
        raise _unknown(asked) from error
    make = functools.partial(timm.create_model, model, pretrained=False)
    accepted = _arguments_of_result(timm.model_entrypoint(model))
    return Architecture(asked, "timm", make, accepted=accepted, reserved=TIMM_RESERVED)


def _unknown(name: str) -> UsageError:
    known = [canonical for names in list_architectures().values() for canonical in names]
    # Where two origins share a name, the first of them is meant: hence the reversed order.
    by_tail = {canonical.rpartition("/")[2]: canonical for canonical in reversed(known)}
    asked, _, _ = name.rpartition("/")[2].partition(".")  # a timm name may have a tag
    tails = difflib.get_close_matches(asked, by_tail, n=4)
    close = ", ".join(by_tail[tail] for tail in tails)
    return UsageError(
        f"There is no architecture {name!r}.",
        hint=(f"Did you mean {close}? " if close else "")
        + "Your own is path/to/file.py:Name.\nList the others: deploykit archs",
    )


CONSTANTS = {"true": True, "false": False, "none": None}


def parse_arch_args(items: Sequence[str]) -> dict[str, object]:
    """Read ``k=2``, ``drop_rate=0.1``, ``block_config=6,12,24,16``, ``pretrained=false``.

    A value is a constant (``true``, ``false``, ``none``, in any case), a Python literal, a comma
    list of these (a tuple), or else text.

    Raises:
        UsageError: An item is not ``key=value``, or a key comes twice.
    """
    arguments: dict[str, object] = {}
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (equals and value and key.isidentifier()):
            raise UsageError(
                f"--arch-arg {item!r} is not KEY=VALUE.",
                hint="Write it as --arch-arg k=2, or --arch-arg block_config=6,12,24,16.",
            )
        if key in arguments:
            raise UsageError(f"--arch-arg {key} is given twice.", hint="Give it once.")
        arguments[key] = _value(value)
    return arguments


def _value(text: str) -> object:
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    try:
        literal: object = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if "," not in text:
            return text
        return tuple(_value(part.strip()) for part in text.split(",") if part.strip())
    return literal


def timm_preprocessing(architecture: Architecture) -> Preprocessing:
    """What timm's evaluation transform does to an image for one of its networks.

    Source: ``timm.data.transforms_factory.transforms_imagenet_eval``, which resizes by the crop
    fraction, rounded down, and then crops the centre.

    Raises:
        UsageError: The architecture is not timm's, or its transform is one that we do not have.
    """
    if architecture.origin != "timm":
        raise UsageError(
            f"{architecture.name} is not a timm network, so timm has no preprocessing for it.",
            hint="Name it timm/NAME, or use --preset tutorial or torchvision.",
        )
    model = architecture.name.removeprefix("timm/")
    settings = need("timm.models").get_pretrained_cfg(model).to_dict()
    config = need("timm.data").resolve_data_config(pretrained_cfg=settings)
    channels, height, width = config["input_size"]
    mode, filter_name = config["crop_mode"], config["interpolation"]
    stretched = mode == "squash"
    if (
        channels != 3
        or filter_name not in ("nearest", "bilinear", "bicubic")
        or not (stretched or (mode == "center" and height == width))
    ):
        raise UsageError(
            f"timm preprocesses for {model} in a way that deploykit does not have: "
            f"{channels}x{height}x{width}, crop mode {mode}, interpolation {filter_name}.",
            hint="Say what training did with --resize, --crop-size and --interpolation.",
        )
    resized = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    return Preprocessing(
        resize=(resized[0], resized[1]) if stretched else resized[0],
        crop_size=(height, width),
        interpolation=filter_name,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        source=f"timm {model}",
    )
