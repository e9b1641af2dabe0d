"""Sessions of a model that a server runs: its inputs and outputs are read from its metadata."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from deploykit.errors import GraphError, InputError
from deploykit.runtime._base import Answers, BaseSession, normalised
from deploykit.runtime._server_client import (
    Array,
    ModelMetadata,
    ServerAddress,
    ServerClient,
    ServerTensor,
    read_key,
)
from deploykit.specs.heads import BaseHead
from deploykit.specs.model import Labels, Precision
from deploykit.specs.preprocessing import Preprocessing, Size
from deploykit.specs.session import Given, ImageBatch, Logits, SessionSpec
from deploykit.specs.tensors import DATATYPES
from deploykit.system.text import visible

#: Seconds that one request may take: a large network needs them for 32 images on a small CPU.
ANSWER_S = 120.0
_FLOATS = ("FP32", "FP16", "FP64")
#: By how much probabilities may miss a sum of 1: what FP16 does to a thousand of them.
_SUM_TOLERANCE = 2e-3
#: What an input takes: the preprocessed pixels, the same normalised, or an image's file.
Taken: TypeAlias = Literal["pixels", "normalised", "files"]


@dataclass(frozen=True)
class OpenServer:
    """A server's model, ready to be asked.

    Attributes:
        sessions: One for each input that takes what the bundle can give.
        skipped: Why other inputs are not given anything, by their names.
        labels: What the server calls the classes, in its order; empty where it does not tell.
    """

    sessions: tuple[ServerSession, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()


def open_server(
    address: ServerAddress,
    *,
    precision: Precision,
    preprocessing: Preprocessing,
    labels: Labels,
    read_file: Callable[[str], bytes] | None,
) -> OpenServer:
    """Connect to a server, read what its model takes and gives, and ask it once.

    Args:
        address: Where it is.
        precision: What it computes in, which no server tells.
        preprocessing: The bundle's.
        labels: The bundle's.
        read_file: Gives an image's file by the image's name; None where the images have no files.

    Raises:
        UsageError: The key in the environment cannot be one.
        DependencyError: What speaks the protocol is not installed.
        ServerError: The server does not answer, is not ready, or wants a key.
        InputError: It has no such model, or refuses what its metadata says that it takes.
        GraphError: Its model is not one of this bundle's.
    """
    with ExitStack() as stack:
        client = stack.enter_context(ServerClient(address, read_key(), ANSWER_S))
        model = client.describe()
        taken = {each: _taken(each, preprocessing) for each in model.inputs}
        skipped = {}
        for tensor, what in taken.items():
            if what == "files" and read_file is None:
                skipped[tensor.name] = "it takes images' files, and these images have none"
            elif what == "files" and not client.takes_bytes:
                skipped[tensor.name] = "it takes images' files, and the server JSON alone"
        usable = {t: what for t, what in taken.items() if what and t.name not in skipped}
        if not usable:
            raise _unusable(address, model, skipped, preprocessing)
        sessions: list[ServerSession] = []
        told: tuple[str, ...] = ()
        for tensor, what in usable.items():
            asked = _Asked(client, model, tensor, what, preprocessing)
            probe = _probe(preprocessing.input_size)
            answers = asked(_given(asked, probe), _outputs(model, labels))
            output, gives = _chosen_output(answers, labels, model)
            spec = SessionSpec(
                runtime=f"{model.server} over {address.protocol}",
                graph=visible(f"{address.model}/{tensor.name}"),
                precision=precision,
                device=str(address),
                input_size=preprocessing.input_size,
                classes=labels.logits,
                largest_batch=_largest_batch(model, tensor),
                place="server",
                gives=gives,
            )
            if what == "files" and read_file is not None:
                sessions.append(FilesSession(spec, asked, output, labels.head, read_file))
            else:
                sessions.append(ServerSession(spec, asked, output, labels.head))
            told = told or asked.labels(probe, output, labels)
        stack.pop_all()  # the sessions close the connection
    return OpenServer(tuple(sessions), skipped, told)


@dataclass(frozen=True)
class _Asked:
    """An input of a server's model, and what it takes."""

    client: ServerClient
    model: ModelMetadata
    tensor: ServerTensor
    taken: Taken
    preprocessing: Preprocessing

    def __call__(self, values: Array, outputs: Sequence[str]) -> dict[str, Array]:
        """Send values of the input's type and shape."""
        return self.client.infer(self.tensor, values, outputs)

    def of_images(self, images: ImageBatch) -> Array:
        """(N, H, W, 3) => what the input takes of preprocessed images."""
        if self.taken == "normalised":
            return normalised(images, self.preprocessing)
        return np.ascontiguousarray(images)

    def of_files(self, files: Sequence[bytes]) -> Array:
        """N files => (N,) or (N, 1), as the input takes them."""
        values = np.empty((len(files), *([1] * (len(self.tensor.shape) - 1))), np.object_)
        values.reshape(-1)[:] = files
        return values

    def labels(self, probe: ImageBatch, output: str, labels: Labels) -> tuple[str, ...]:
        """What the server calls the classes; empty where it does not tell all of them."""
        if "classification" not in self.model.extensions:
            return ()
        values, count = _given(self, probe), len(labels)
        try:
            found = self.client.infer(self.tensor, values, [output], classes=count)[output]
        except InputError:  # it has the extension, and not for this output
            return ()
        # https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
        names = dict[int, str]()
        for each in found.reshape(-1).tolist():
            text = each.decode(errors="replace") if isinstance(each, bytes) else str(each)
            _, place, name = (*text.split(":", 2), "", "")[:3]
            if place.isdecimal() and len(place) < 10 and name:
                names[int(place)] = name
        return tuple(names[i] for i in range(count)) if {*names} >= {*range(count)} else ()


class ServerSession(BaseSession):
    """A server's model that takes pixels.

    Args:
        spec: What really runs.
        asked: The input.
        output: The output whose values are compared.
        head: What these mean.
    """

    def __init__(self, spec: SessionSpec, asked: _Asked, output: str, head: BaseHead) -> None:
        super().__init__(spec, pixels=asked.preprocessing.pixel_type)
        self._asked, self._output, self._head = asked, output, head

    def _run(self, images: ImageBatch) -> Answers:
        return self._answered(self._asked.of_images(images))

    def _answered(self, values: Array) -> Answers:
        found = self._asked(values, [self._output])[self._output].astype(np.float32)
        if found.shape[:1] != (len(values),):
            raise GraphError(
                f"{self.spec.title} answers {len(values)} images with shape {found.shape}."
            )
        if self.spec.gives == "logits":
            return found
        with np.errstate(invalid="ignore"):
            wrong = found[(found < -_SUM_TOLERANCE) | (found > 1 + _SUM_TOLERANCE)]
        if wrong.size:
            raise GraphError(
                f"{self.spec.title} gave probabilities first, and now {wrong[0]:.3g} in "
                f"{self._output}, which is none."
            )
        return self._head.logits_from(found.astype(np.float64)).astype(np.float32)

    def close(self) -> None:
        """Close the connection; closing twice is fine."""
        self._asked.client.close()


class FilesSession(ServerSession):
    """A server's model that takes images' files: the whole way to the logits is the server's.

    Args:
        spec: What really runs.
        asked: The input.
        output: See :class:`ServerSession`, as the next.
        head: What it means.
        read_file: Gives an image's file by the image's name.
    """

    def __init__(
        self,
        spec: SessionSpec,
        asked: _Asked,
        output: str,
        head: BaseHead,
        read_file: Callable[[str], bytes],
    ) -> None:
        super().__init__(spec, asked, output, head)
        self._read_file = read_file

    def run_named(self, names: Sequence[str], images: ImageBatch) -> Logits:
        """Send the files, not what is here made of them.

        See :class:`deploykit.specs.session.NamedSession`.

        Raises:
            InputError: The server refuses one of them.
        """
        files = [self._read_file(name) for name in names]
        try:
            found = self._answered(self._asked.of_files(files))
        except InputError as exc:
            if len(names) > 1:  # which of them?
                return np.concatenate([self.run_named([name], images) for name in names])
            raise type(exc)(f"{visible(names[0])}: {exc.message}", hint=exc.hint) from exc
        return self._logits(self._checked(found, len(names)))

    def _run(self, images: ImageBatch) -> Answers:
        del images
        raise TypeError("what takes files takes no pixels")


def _taken(tensor: ServerTensor, preprocessing: Preprocessing) -> Taken | None:
    """What an input takes; None for nothing that a bundle can give."""
    height, width = preprocessing.input_size

    def fits(*wanted: int) -> bool:
        found = tensor.shape[1:]
        pairs = zip(found, wanted, strict=False)
        return len(found) == len(wanted) and all(size in (-1, want) for size, want in pairs)

    pixels = DATATYPES[preprocessing.pixel_type]
    if tensor.datatype == "FP32" and fits(3, height, width):
        return "normalised"
    if tensor.datatype == pixels and fits(height, width, 3):
        return "pixels"
    return "files" if tensor.datatype == "BYTES" and (fits() or fits(1)) else None


def _unusable(
    address: ServerAddress,
    model: ModelMetadata,
    skipped: dict[str, str],
    preprocessing: Preprocessing,
) -> GraphError:
    height, width = preprocessing.input_size
    pixels = DATATYPES[preprocessing.pixel_type]
    shown = ", ".join(map(str, model.inputs)) or "none"
    why = "".join(f"; {visible(name)}: {reason}" for name, reason in skipped.items())
    return GraphError(
        f"{address} has no input for this bundle's images in {address.model!r}: its metadata has "
        f"the inputs {shown}{why}.",
        hint=f"One of these is needed: {pixels} [N, {height}, {width}, 3], FP32 [N, 3, {height}, "
        f"{width}], BYTES [N] or [N, 1]. A server may have to be told to describe its inputs.",
    )


def _probe(size: Size) -> ImageBatch:
    """(1, H, W, 3) noise."""
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype(np.uint8)


def _given(asked: _Asked, probe: ImageBatch) -> Array:
    """What an input takes of the probe."""
    if asked.taken == "files":
        stream = io.BytesIO()
        Image.fromarray(probe[0]).save(stream, "PNG")
        return asked.of_files([stream.getvalue()])
    return asked.of_images(probe.astype(asked.preprocessing.pixel_type))


def _outputs(model: ModelMetadata, labels: Labels) -> list[str]:
    """The outputs that have a number for each logit or class."""
    sizes = {-1, labels.logits, len(labels)}
    found = [
        each.name
        for each in model.outputs
        if each.datatype in _FLOATS and len(each.shape) == 2 and each.shape[1] in sizes
    ]
    if not found:
        shown = ", ".join(map(str, model.outputs)) or "none"
        raise GraphError(
            f"{model.server} has no output with a number for each of {len(labels)} classes: its "
            f"metadata has the outputs {shown}.",
            hint=f"Logits are FP32 [N, {labels.logits}]. Is it another bundle's model?",
        )
    return found


def _chosen_output(
    answers: dict[str, Array], labels: Labels, model: ModelMetadata
) -> tuple[str, Given]:
    """The output with logits, else that with probabilities, and which of both it is."""
    head = labels.head
    fitting = {
        name: values
        for name, values in answers.items()
        if values.shape in ((1, labels.logits), (1, len(labels)))
    }
    kinds = {name: _is_probabilities(name, values, head) for name, values in fitting.items()}
    for name in sorted(kinds, key=lambda each: "logit" not in each.lower()):
        if not kinds[name] and fitting[name].shape == (1, labels.logits):
            return name, "logits"
    for name, is_probability in kinds.items():
        if is_probability:
            return name, "probabilities"
    shapes = ", ".join(f"{visible(name)} {values.shape}" for name, values in answers.items())
    raise GraphError(
        f"{model.server} answers one image with {shapes}; (1, {labels.logits}) is needed.",
        hint="Is it another bundle's model?",
    )


def _is_probabilities(name: str, values: Array, head: BaseHead) -> bool:
    """Whether an output has probabilities: of one class an image, they sum up to 1."""
    numbers = values.astype(np.float64)
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and (numbers <= 1).all()):
        return False
    if numbers.shape[1] > 1 and not head.several:
        return bool(abs(numbers.sum() - 1) <= _SUM_TOLERANCE)
    return "logit" not in name.lower()


def _largest_batch(model: ModelMetadata, tensor: ServerTensor) -> int | None:
    fixed = tensor.shape[0] if tensor.shape and tensor.shape[0] > 0 else None
    return min(filter(None, (fixed, model.largest_batch)), default=None)
