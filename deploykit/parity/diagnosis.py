"""What a diagnosis found: stage by stage, and node by node of a graph."""

from __future__ import annotations

from typing import Literal, TypeAlias

from deploykit.parity.measurement import Measurement
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import Value

Stage: TypeAlias = Literal[
    "images", "decode", "resize", "preprocessing", "colour", "normalise", "network", "labels",
    "accuracy", "canonical graph", "batch size", "graph pass", "precision", "runtime",
]  # fmt: skip
Options: TypeAlias = tuple[tuple[str, str], ...]
"""Options of ``export`` with their values: ``("--mean", "0.5,0.5,0.5")``; a switch has ``""``."""


class StageStep(Value, frozen=True):
    """One change on the way from training to what is deployed, on the same images.

    Attributes:
        stage: Where the change is.
        change: What is done from here on, in words: ``bilinear instead of bicubic``.
        added: The answers from here on compared with those of the step before, on the images to
            which those are finite.
        reasons: Why the step failed, a sentence each; empty where it passed. Only what the step
            changes counts, not what the images were too weak to show before it.
    """

    stage: Stage
    change: str
    added: Measurement
    reasons: tuple[str, ...]


class Finding(Value, frozen=True):
    """A fault with its name.

    Attributes:
        stage: Where it is.
        message: What is wrong, with both values: ``training used bicubic, the bundle records
            bilinear``.
        hint: What to do.
        options: The options of ``export`` that correct it; empty where something else has to be
            done first. The value ``FILE`` stands for a text file with ``labels``, one a line.
        labels: In the order that the answers follow; empty where they are not the fault.
    """

    stage: Stage
    message: str
    hint: str
    options: Options = ()
    labels: tuple[str, ...] = ()


class Variation(Value, frozen=True):
    """One change to the recorded preprocessing or to the order of the labels, tried alone.

    Attributes:
        change: What is done otherwise: ``resize 256 (shorter side), centre crop 224x224``.
        option: How ``export`` is told: ``--resize 256 --crop-size 224x224``; empty where it cannot.
        correct: Images that get exactly their right classes.
        images: How many images were tried.
        gained: ``correct`` minus that of the bundle as recorded.
        is_clear: Whether the gain is more than chance gives: only then is it a suggestion.
    """

    change: str
    option: str
    correct: int
    images: int
    gained: int
    is_clear: bool


class StageReport(Value, frozen=True):
    """The diagnosis by stage.

    Attributes:
        beginning: What the steps start from, in words: ``train.py:transform and the checkpoint``.
        steps: In the order of the flow.
        findings: The faults that could be named.
        variations: What was tried, the best first; empty where there was no need.
        correct: Labelled images that the FP32 deploy graph gives exactly their right classes.
        right: What these get, in words.
        labelled: How many images are labelled.
        trained_accuracy: The accuracy of training on its test images, 0..1; None if unknown.
    """

    beginning: str
    steps: tuple[StageStep, ...]
    findings: tuple[Finding, ...] = ()
    variations: tuple[Variation, ...] = ()
    correct: int = 0
    labelled: int = 0
    right: str = "their folder's class"
    trained_accuracy: float | None = None

    @property
    def first(self) -> StageStep | None:
        """The first step that moves the answer beyond its tolerance."""
        return next((step for step in self.steps if step.reasons), None)

    @property
    def passed(self) -> bool:
        """Whether there are steps, each within its tolerance, and no fault was named."""
        return bool(self.steps) and self.first is None and not self.findings


class TriedChange(Value, frozen=True):
    """A usual change to what is recorded, held against answers from elsewhere.

    Attributes:
        change: What is done otherwise: ``BGR instead of RGB``; ``as recorded`` for nothing.
        agreed: How many images get the decision from elsewhere.
        probability_change: The largest difference of a probability that is left; NaN where none is
            known.
        explains: Whether nothing to speak of is left, or clearly less than chance explains.
    """

    change: str
    agreed: int
    probability_change: float
    explains: bool


class Explanation(Value, frozen=True):
    """Which change to the recorded preprocessing gives the answers from elsewhere.

    Attributes:
        candidate: What answers there, in words.
        images: How many images were tried.
        tried: The best first.
    """

    candidate: str
    images: int
    tried: tuple[TriedChange, ...]

    @property
    def cause(self) -> TriedChange | None:
        """The change that explains the difference best; None where none does."""
        return next((each for each in self.tried if each.explains), None)


def node_title(node: str, operator: str, module: str) -> str:
    """A node in words: ``node_relu (Relu of stem.2)``; without a module ``node_relu (Relu)``."""
    return f"{node} ({operator}{f' of {module}' if module else ''})"


class LayerError(Value, frozen=True):
    """What one node does to the error. Errors are L2 norms relative to the reference tensor's.

    They are infinite where a value is not finite, or there is no tensor to compare.

    Attributes:
        node: The ONNX node's name; the reference's name where that node is missing.
        operator: ``Conv``.
        module: The path of its ``nn.Module``; empty where the exporter named none.
        tensor: The output that was compared.
        added: The error of its output when its inputs are the reference's: its own.
        carried: The error of its output in the candidate: its own and what it inherits.
        non_finite: How many of the candidate's values are NaN or infinite where the reference's are
            finite.
        reason: What was seen at this node beside the numbers, in words; empty for nothing.
        inherited: The largest error, in the candidate, of what the node reads.
    """

    node: str
    operator: str
    module: str
    tensor: str
    added: float
    carried: float
    non_finite: int
    reason: str = ""
    inherited: float = 0.0

    @property
    def title(self) -> str:
        """The node in words; see :func:`node_title`."""
        return node_title(self.node, self.operator, self.module)


class LayerReport(Value, frozen=True):
    """The diagnosis of one candidate, node by node.

    Attributes:
        candidate: What was diagnosed.
        reference: What its tensors were compared with, in words.
        images: On how many images.
        tolerance: The ``added`` error that a node of this precision may have.
        first: The first node, in the order of the graph, that leaves the tolerance or gives what is
            not finite; None for none. Where every node is right for one image, the first that is
            not for a batch.
        ranking: The nodes that add most, the worst first; without those that add nothing.
        nodes: How many nodes were compared.
        differences: What is wrong with its answer although every node is right, a sentence each.
    """

    candidate: SessionSpec
    reference: str
    images: int
    tolerance: float
    first: LayerError | None
    ranking: tuple[LayerError, ...]
    nodes: int
    differences: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nodes were compared, and none left the tolerance."""
        return self.nodes > 0 and self.first is None and not self.differences
