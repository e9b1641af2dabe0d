"""What every runtime of ONNX graphs checks of one before it runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploykit.errors import GraphError
from deploykit.specs.labels import LABELS_KEY, Labels
from deploykit.specs.preprocessing import PREPROCESSING_KEY, Preprocessing
from deploykit.specs.session import SessionSpec
from deploykit.specs.tensors import TensorSpec

#: The names of a graph's inputs and output, the canonical graph's and the deploy graphs'.
TENSORS = ("input", "images", "logits")
#: What a graph may tell of itself in its ``metadata_props``.
METADATA_KEYS = (LABELS_KEY, PREPROCESSING_KEY)
_EXPORT_AGAIN = "Export the bundle again."


def takes_normalised(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], spec: SessionSpec
) -> bool:
    """Whether a graph is a canonical one, which takes normalised images; else it takes bytes.

    Args:
        inputs: As the runtime tells them; the first dimension, the batch, may be anything.
        outputs: The same.
        spec: Of the session.

    Raises:
        GraphError: It is neither a canonical nor a deploy graph.
    """
    height, width = spec.input_size
    found = [_without_batch(each) for each in inputs]
    answers = [_without_batch(each) for each in outputs]
    canonical = [("input", "float32", (3, height, width))]
    deploy = [("images", "uint8", (height, width, 3))]
    if found not in (canonical, deploy) or answers != [("logits", "float32", (spec.classes,))]:
        raise GraphError(
            f"{spec.graph} is not the graph that the manifest describes: "
            f"inputs {found}, outputs {answers}.",
            hint=_EXPORT_AGAIN,
        )
    return found == canonical


def check_meaning(
    told: Mapping[str, str], name: str, labels: Labels, preprocessing: Preprocessing
) -> None:
    """Refuse a graph that tells other labels or preprocessing than its bundle's manifest.

    Args:
        told: The graph's ``metadata_props``.
        name: What errors call the graph.
        labels: The manifest's.
        preprocessing: The manifest's.

    Raises:
        GraphError: It does.
    """
    expected = {
        LABELS_KEY: labels.to_metadata(),
        PREPROCESSING_KEY: preprocessing.to_metadata(),
    }
    for key, value in expected.items():
        if told.get(key, value) != value:
            raise GraphError(
                f"{name} was exported with {key} {told[key]}, but the manifest says {value}.",
                hint=f"One of the two was changed afterwards. {_EXPORT_AGAIN}",
            )


def _without_batch(tensor: TensorSpec) -> tuple[str, str, tuple[int | str, ...]]:
    return tensor.name, tensor.dtype, tensor.shape[1:]
