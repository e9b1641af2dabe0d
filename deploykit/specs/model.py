"""What there is to say of a model: its classes, its precision, its inputs and outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, Self, TypeAlias, get_args

import msgspec

from deploykit.errors import UsageError
from deploykit.specs.heads import ASSUMED_HEAD, Decisions, Head
from deploykit.specs.value import Value
from deploykit.system.text import has_control_character


def names_user_code(architecture: str) -> bool:
    """Whether an architecture's name means the user's own code, rather than one that we know.

    Nothing but the name decides it: what a bundle says of itself is no evidence.
    """
    return ":" in architecture or architecture.endswith(".py")


Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]


PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class KeptNode(Value, frozen=True):
    """A node that stays in FP32 in a graph of lower precision.

    Attributes:
        node: The ONNX node's name.
        operator: ``Conv``.
        module: The path of the ``nn.Module`` that it comes from, ``conv2.0.conv1``; empty where the
            exporter named none.
        reason: Why it stays, in words, with the numbers.
    """

    node: str
    operator: str
    module: str
    reason: str


class TensorSpec(Value, frozen=True):
    """One input or output of a graph.

    Attributes:
        name: The tensor's name in the graph.
        dtype: NumPy's name of the element type, ``float32``.
        shape: One entry a dimension; a name stands for a dynamic one.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


#: Under these keys of an ONNX file's ``metadata_props`` stand the labels (a JSON list), a head that
#: is not single-label (a JSON object) and the preprocessing (likewise), so that a graph that left
#: its bundle still tells how to feed it and what it answers.
LABELS_KEY = "deploykit.labels"
HEAD_KEY = "deploykit.head"


def check_class_names(names: Iterable[str]) -> None:
    """Refuse names that are no line of text: shown, such a name could look like other lines.

    Raises:
        UsageError: A name has a control character, a line break for one, or half a character.
    """
    for name in names:
        if has_control_character(name):
            raise UsageError(
                f"The class name {name[:40]!r} has a control character, such as a line break.",
                hint="A class name is one line of text: rename the class where it is named.",
            )


class Labels(Value, frozen=True):
    """What the logits mean: the classes' names, in the order of the logits, and the head.

    Attributes:
        names: One unique name a class.
        source: Where they come from, in words: ``folder bird_photos``, ``assumed``.
        head: How logits decide for classes.
    """

    names: tuple[str, ...]
    source: str
    head: Head = ASSUMED_HEAD

    def __post_init__(self) -> None:
        self.head.check(len(self.names))
        repeated = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if repeated:
            raise UsageError(f"Class names must be unique; repeated: {', '.join(repeated)}.")
        check_class_names(self.names)
        barred = [name for name in self.names if "|" in name]
        if barred and self.head.several:
            raise UsageError(
                f"The class name {barred[0]!r} has a |, which stands between the classes of an "
                "image in tables: they could not be told apart.",
                hint="Rename the class where it is named, such as "
                f"{barred[0].replace('|', '-')!r}.",
            )

    @classmethod
    def numbered(cls, count: int) -> Self:
        """``class_0`` ... for a model whose class names nobody gave."""
        return cls(names=tuple(f"class_{i}" for i in range(count)), source="assumed")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def folder_names(self) -> tuple[str, ...]:
        """The names by which an image's folder tells its class; none where it may have several."""
        return () if self.head.several else self.names

    @property
    def logits(self) -> int:
        """The number of logits an image."""
        return self.head.logits_for(len(self))

    def title_of(self, decision: Decisions) -> str:
        """What one decision, (D,), is for, in words: ``robin``, ``robin, crow``, ``none``."""
        return ", ".join(self.head.names_of(decision, self.names)) or "none"

    @property
    def metadata(self) -> dict[str, str]:
        """What stands under :data:`LABELS_KEY` and :data:`HEAD_KEY`."""
        told = {LABELS_KEY: msgspec.json.encode(self.names).decode()}
        if not self.head.is_assumed:
            told[HEAD_KEY] = msgspec.json.encode(self.head).decode()
        return told
