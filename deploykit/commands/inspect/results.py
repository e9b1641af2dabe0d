"""What ``inspect`` finds in a bundle, a graph, an engine or a checkpoint: frozen values."""

from __future__ import annotations

from typing import Literal, TypeAlias

from deploykit.bundle.manifest import Manifest
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.engine.passport import Passport
from deploykit.proof.policy import StatusWord
from deploykit.specs.engine import Flavour
from deploykit.specs.model import KeptNode, TensorSpec
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.value import Value

FileState: TypeAlias = Literal["ok", "changed", "missing", "left out"]
Scalar: TypeAlias = str | bool | int | float


class BundleFile(Value, frozen=True):
    """A file that a manifest names.

    Attributes:
        name: Relative to the bundle, ``deploy/fp32.onnx``.
        bytes: Its size when it was recorded.
        state: ``changed`` when its hash is another one now; ``left out`` for an engine, and its
            passport, when neither is there: a copy may have been made without them.
    """

    name: str
    bytes: int
    state: FileState


class EngineInspection(Value, frozen=True):
    """A serialized TensorRT engine.

    Attributes:
        path: The file; relative to the bundle for one of a bundle's.
        bytes: Its size; 0 when it is not there.
        flavour: What its header says; None where the header is unknown, as in what follows.
        version: Of the TensorRT that built it.
        targets: What it was built for.
        passport: What its passport says; None without a usable one.
        reasons: Why it cannot be used, a sentence each.
    """

    path: str
    bytes: int
    flavour: Flavour | None
    version: str | None
    targets: tuple[str, ...] | None
    passport: Passport | None
    reasons: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


class InspectedVerdict(Value, frozen=True):
    """A verdict of a manifest, and what the policy makes of it here.

    Attributes:
        status: See :class:`deploykit.proof.policy.Status`, as the reason.
        reason: Why it is not proven; empty where it is.
        verdict: As it was kept.
    """

    status: StatusWord
    reason: str
    verdict: KeptVerdict


class AutoChoice(Value, frozen=True):
    """What ``predict --runtime auto`` does with a bundle on this machine.

    Attributes:
        runs: ``deploy/fp32.onnx on onnxruntime-cpu (CPU)``; empty when nothing would run.
        reasons: What it would not take, and why; or why nothing runs, and what to do.
    """

    runs: str
    reasons: tuple[str, ...]


class BundleInspection(Value, frozen=True):
    """A bundle.

    Attributes:
        folder: Where it is.
        manifest: What it says of itself.
        files: Its files, and whether they are the recorded ones.
        engines: The engines that are there, the newest last.
        verdicts: What has been shown, the newest last.
        auto: What would run here.
    """

    folder: str
    manifest: Manifest
    files: tuple[BundleFile, ...]
    engines: tuple[EngineInspection, ...]
    verdicts: tuple[InspectedVerdict, ...]
    auto: AutoChoice

    @property
    def sound(self) -> bool:
        """Whether every file is the recorded one, and each engine that of its passport."""
        return all(file.state in ("ok", "left out") for file in self.files) and all(
            engine.sound for engine in self.engines
        )


class GraphInspection(Value, frozen=True):
    """An ONNX graph.

    Attributes:
        path: The file.
        bytes: Its size.
        producer: The program that made it.
        opsets: The version of each operator set; the empty name is ONNX's own.
        inputs: Names, types and shapes.
        outputs: Likewise.
        operators: How many nodes each operator has, most first.
        weights: How many numbers of each type the weights are.
        precision: What it computes in, in words.
        kept: Nodes in FP32 in a graph of lower precision; the reasons are the bundle's to tell.
        labels: The classes' names that it carries; None without.
        preprocessing: What it carries of it; None without.
        notes: What is wrong with what it carries.
    """

    path: str
    bytes: int
    producer: str
    opsets: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    weights: dict[str, int]
    precision: str
    kept: tuple[KeptNode, ...]
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether all that it carries can be read."""
        return not self.notes


class CheckpointInspection(Value, frozen=True):
    """A checkpoint, read without running any code from it.

    Attributes:
        path: The file.
        bytes: Its size.
        container: How it is made: ``torch.save (zip)``.
        entry: The entry with the weights, ``model.state_dict``; empty for the whole file.
        tensors: How many.
        parameters: How many numbers they are, running statistics included.
        dtypes: How many tensors of each type.
        non_finite: Tensors with NaN or infinity in them.
        classes: How many classes the last layer seems to have; None when it cannot be told.
        last_layer: That layer's name.
        family: Whose names these are, where known.
        told: What else the file says that is a plain value: epoch, accuracy.
        notes: What had to be taken off to get at the weights.
    """

    path: str
    bytes: int
    container: str
    entry: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    non_finite: tuple[str, ...]
    classes: int | None
    last_layer: str
    family: str | None
    told: dict[str, Scalar]
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether its weights are finite."""
        return not self.non_finite


Inspection: TypeAlias = BundleInspection | GraphInspection | EngineInspection | CheckpointInspection
