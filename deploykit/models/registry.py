"""Architectures by name: the zoo's, torchvision's, timm's and the user's own."""

from __future__ import annotations

import difflib
import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import nn

from deploykit.errors import ArchitectureError, DeploykitError, UsageError
from deploykit.models.factory import NO_ARGUMENTS, Factory, arguments_of_result, factory_of
from deploykit.models.user_code import user_callable
from deploykit.models.zoo import ENTRIES
from deploykit.specs.architecture import names_user_code
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.deps import need
from deploykit.system.shell import command_line

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
        preprocessing: What its training did to the photos; None where the caller's preset holds.
        factory: What makes it.
        training_only: Prefixes of weights that a checkpoint may have and that eval does not use.
        undecided: Arguments that change the answers without a trace in the weights, and what the
            user should know about each.
    """

    name: str
    origin: Origin
    preprocessing: Preprocessing | None = None
    factory: Factory = field(kw_only=True, repr=False)
    training_only: tuple[str, ...] = ()
    undecided: Mapping[str, str] = field(default_factory=dict)

    def build(self, num_classes: int, arch_args: Mapping[str, object] = NO_ARGUMENTS) -> nn.Module:
        """Make the network, randomly initialised.

        Args:
            num_classes: The number of logits; not used where the user's code takes none.
            arch_args: Further arguments of the function, as ``--arch-arg`` gives them.

        Raises:
            UsageError: An argument that the function does not take, or a value that it refuses.
            ArchitectureError: The function fails, or does not return a network.
        """
        arguments = self.factory.arguments(self.name, num_classes, arch_args)
        try:
            module = self.factory.make(**arguments)
        except DeploykitError:
            raise
        except Exception as error:
            raise self._failure(error, arch_args) from error
        if not isinstance(module, nn.Module):
            raise ArchitectureError(
                f"{self.name} returns {type(module).__name__}, not a torch.nn.Module.",
                hint="Name a class derived from nn.Module, or a function that returns the network.",
            )
        return module

    def _failure(self, error: Exception, arch_args: Mapping[str, object]) -> DeploykitError:
        reason = f"{type(error).__name__}: {error}"
        if not arch_args:
            return ArchitectureError(
                f"{self.name} cannot be made: {reason}",
                hint="Update the library that it comes from, or choose another architecture.",
            )
        values = ", ".join(f"{key}={value!r}" for key, value in arch_args.items())
        return UsageError(
            f"{self.name} cannot be made with {values}: {reason}",
            hint="Check the --arch-arg values.",
        )


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
        return Architecture(name, "user", factory=factory_of(user_callable(name)))
    library, slash, model = name.partition("/")
    if slash and library == "timm":
        return _timm_architecture(name, model)
    if slash and library == "torchvision":
        return _torchvision_architecture(name, model)
    if name in ENTRIES:
        entry = ENTRIES[name]
        return Architecture(name, "zoo", entry.preprocessing, factory=factory_of(entry.build))
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
        factory=Factory(
            functools.partial(builder, **fixed),
            "num_classes",
            arguments_of_result(builder),
            reserved=frozenset({*fixed, "progress", "weights_backbone"}),
        ),
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
    accepted = arguments_of_result(timm.model_entrypoint(model))
    factory = Factory(make, "num_classes", accepted, reserved=TIMM_RESERVED)
    return Architecture(asked, "timm", factory=factory)


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
        + "'deploykit archs' lists them; your own is path/to/file.py:Name.",
    )
