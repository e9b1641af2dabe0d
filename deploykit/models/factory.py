"""What makes a network, and which arguments it takes: read off its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deploykit.errors import ArchitectureError, UsageError

#: Names by which a network's maker takes the number of classes, in the order they are looked for.
CLASS_ARGUMENTS = ("num_classes", "n_class", "n_classes", "classes")

NO_ARGUMENTS: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Factory:
    """A callable that makes a network.

    Attributes:
        make: The callable; called with keywords only.
        class_argument: The keyword for the number of classes; None where the maker decides it.
        accepted: The keywords that it takes; None when it takes any.
        reserved: Keywords that are not the user's to give, whatever ``accepted`` says.
        required: The keywords that it cannot do without, the number of classes apart.
    """

    make: Callable[..., object]
    class_argument: str | None
    accepted: frozenset[str] | None
    reserved: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()

    def arguments(
        self, name: str, num_classes: int, arch_args: Mapping[str, object]
    ) -> dict[str, object]:
        """Put the keywords of one call together.

        Args:
            name: The architecture's name, for the messages.
            num_classes: The number of logits.
            arch_args: The user's arguments.

        Raises:
            UsageError: An argument that the maker does not take, or that is not the user's to give.
            ArchitectureError: An argument without a default is missing.
        """
        if self.class_argument in arch_args:
            raise UsageError(
                f"{self.class_argument} of {name} is not set by --arch-arg.",
                hint="Leave it out: the number of classes is read off the weights.",
            )
        allowed = frozenset(arch_args) if self.accepted is None else self.accepted
        unknown = sorted(arch_args.keys() - (allowed - self.reserved))
        if unknown:
            accepted = sorted(allowed - self.reserved - {self.class_argument, *unknown})
            raise UsageError(
                f"{name} takes no argument {', '.join(unknown)}.",
                hint=f"It takes: {', '.join(accepted)}." if accepted else "Leave it out.",
            )
        missing = [argument for argument in self.required if argument not in arch_args]
        if missing:
            raise _missing(name, missing)
        counted = {self.class_argument: num_classes} if self.class_argument else {}
        return {**arch_args, **counted}


def factory_of(make: Callable[..., object]) -> Factory:
    """Read a callable's signature.

    A callable with ``**kwargs`` and none of the known names for the number of classes is taken to
    hand ``num_classes`` on.
    """
    try:
        parameters = inspect.signature(make).parameters.values()
    except (ValueError, TypeError):  # C code has no signature to read
        return Factory(make, CLASS_ARGUMENTS[0], accepted=None)
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    names = {p.name for p in named}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    fallback = CLASS_ARGUMENTS[0] if takes_any else None
    class_argument = next((name for name in CLASS_ARGUMENTS if name in names), fallback)
    return Factory(
        make,
        class_argument,
        accepted=None if takes_any else frozenset(names),
        required=tuple(p.name for p in named if p.default is p.empty and p.name != class_argument),
    )


def arguments_of_result(make: Callable[..., object]) -> frozenset[str] | None:
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


def _missing(name: str, missing: list[str]) -> ArchitectureError:
    given = ", ".join(f"{argument}=..." for argument in missing)
    options = " ".join(f"--arch-arg {argument}=VALUE" for argument in missing)
    return ArchitectureError(
        f"{name} needs {', '.join(missing)}, which has no default."
        if len(missing) == 1
        else f"{name} needs {', '.join(missing)}, which have no defaults.",
        hint=f"Give it: {options}; or write a function that needs the number of classes only, "
        f"'def make(num_classes): return {name.rpartition(':')[2]}({given})', "
        f"and name that: --arch FILE.py:make.",
    )
