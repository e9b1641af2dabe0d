"""The KServe v2 protocol over HTTP: requests to arrays, and arrays to answers.

See https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and, for
tensors as binary data behind the JSON, Triton's
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from deploykit import __version__
from deploykit.bundle.folder import Bundle
from deploykit.commands.serve.refused import RefusedError
from deploykit.commands.serve.uploads import decoded_base64
from deploykit.specs.session import ImageBatch, Logits
from deploykit.specs.tensors import DATATYPES, IMAGE_FILE, IMAGES, LOGITS, PROBABILITIES

#: Of the request and of the answer: how many bytes of the body are JSON.
HEADER_LENGTH = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data",)
#: A bundle has one version at a time; which one, its manifest's digest tells.
VERSION = "1"
_OUTPUTS = (LOGITS, PROBABILITIES)
_DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
#: Of a size in bytes; Python refuses to read thousands of them.
_MOST_DIGITS = 20
#: Four bytes before each element of BYTES: its length.
_LENGTH_BYTES = 4

_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
_Parameters = dict[str, Any]


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor of a model; -1 stands for any number of images."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str]


class ServerMetadata(msgspec.Struct, frozen=True):
    """Who answers, and which extensions of the protocol it knows."""

    name: str = "deploykit"
    version: str = __version__
    extensions: list[str] = msgspec.field(default_factory=lambda: [*EXTENSIONS])


class InferInput(msgspec.Struct, frozen=True):
    """A tensor of a request: ``data``, or ``binary_data_size`` bytes behind the JSON."""

    name: str
    datatype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    parameters: _Parameters = {}  # msgspec copies it
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that a request asks for."""

    name: str
    parameters: _Parameters = {}


class InferRequest(msgspec.Struct, frozen=True):
    """The JSON of a request."""

    inputs: list[InferInput]
    outputs: list[RequestedOutput] = []
    parameters: _Parameters = {}
    id: str = ""


class InferOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor of an answer: ``data``, flat, or ``binary_data_size`` bytes behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] | None = None
    parameters: dict[str, int] | None = None


class InferResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    outputs: list[InferOutput]
    id: str = ""


class Wanted(NamedTuple):
    """An output that is asked for, and whether as binary data."""

    name: str
    is_binary: bool


@dataclass(frozen=True, eq=False)
class Call:
    """A request that was understood.

    Attributes:
        id: Whatever the client calls it.
        pixels: (N, H, W, 3) of the model's input size, a view of the body where it can be; None of
            a request with files.
        files: What image files hold; None of a request with pixels.
        outputs: What is asked for, in order.
    """

    id: str
    pixels: ImageBatch | None
    files: list[bytes] | None
    outputs: tuple[Wanted, ...]

    @property
    def count(self) -> int:
        """N."""
        return len(self.files or ()) if self.pixels is None else len(self.pixels)


def model_metadata(bundle: Bundle, platform: str, parameters: Mapping[str, str]) -> ModelMetadata:
    """What a bundle takes and gives.

    Args:
        bundle: The bundle.
        platform: What executes it.
        parameters: What else there is to tell.
    """
    labels, preprocessing = bundle.manifest.labels, bundle.manifest.preprocessing
    datatype = DATATYPES[preprocessing.pixel_type]
    return ModelMetadata(
        name=bundle.name,
        versions=[VERSION],
        platform=platform,
        inputs=[
            TensorMetadata(IMAGES, datatype, [-1, *preprocessing.input_size, 3]),
            TensorMetadata(IMAGE_FILE, "BYTES", [-1]),
        ],
        outputs=[
            TensorMetadata(LOGITS, "FP32", [-1, labels.logits]),
            TensorMetadata(PROBABILITIES, "FP32", [-1, len(labels)]),
        ],
        parameters=dict(parameters),
    )


def read_call(body: bytes, header_length: str | None, bundle: Bundle) -> Call:
    """Understand a request.

    Args:
        body: JSON, and binary data behind it.
        header_length: How many of its bytes are JSON, as the request's header says; None where
            there is no such header, and all of it is.
        bundle: What answers.

    Raises:
        RefusedError: It is none that this model answers.
    """
    size = len(body)
    if header_length is not None:
        told = json_bytes(header_length)
        if told is None or told > size:
            raise _bad(
                f"Inference-Header-Content-Length is {header_length[:_MOST_DIGITS]}, and the body "
                f"has {size} bytes"
            )
        size = told
    try:
        request = msgspec.json.decode(memoryview(body)[:size], type=InferRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise _bad(f"The request is no inference request: {exc}") from exc
    outputs = _outputs_of(request)
    if len(request.inputs) != 1 or request.inputs[0].name not in (IMAGES, IMAGE_FILE):
        names = ", ".join(each.name for each in request.inputs) or "none"
        raise _bad(f"The model takes one input, {IMAGES} or {IMAGE_FILE}; the request has {names}")
    (tensor,) = request.inputs
    rest = memoryview(body)[size:]
    data = _binary_of(tensor, rest)
    if tensor.name == IMAGE_FILE:
        files = _files_of(tensor, data)
        return Call(request.id, None, files, outputs)
    return Call(request.id, _pixels_of(tensor, data, bundle), None, outputs)


def json_bytes(header_length: str | None) -> int | None:
    """How many bytes of a body are JSON; None where the request's header tells none."""
    if header_length is None or not (header_length.isascii() and header_length.isdigit()):
        return None
    return int(header_length) if len(header_length) <= _MOST_DIGITS else None


def _bad(reason: str) -> RefusedError:
    return RefusedError(400, f"{reason}.")


def _outputs_of(request: InferRequest) -> tuple[Wanted, ...]:
    in_all = request.parameters.get("binary_data_output", False)
    wanted: list[Wanted] = []
    for each in request.outputs or [RequestedOutput(name) for name in _OUTPUTS]:
        if each.name not in _OUTPUTS:
            raise _bad(f"There is no output {each.name!r}; there are {', '.join(_OUTPUTS)}")
        unknown = each.parameters.keys() & {"classification", "shared_memory_region"}
        if unknown:
            raise _bad(f"{unknown.pop()} is not supported; GET /v2 lists what is")
        if any(each.name == name for name, _ in wanted):
            raise _bad(f"Output {each.name} is asked for twice")  # thousands would fill the memory
        wanted.append(Wanted(each.name, bool(each.parameters.get("binary_data", in_all))))
    return tuple(wanted)


def _binary_of(tensor: InferInput, rest: memoryview) -> memoryview | None:
    """The binary data of the one tensor; None where it is in the JSON."""
    if "shared_memory_region" in tensor.parameters:
        raise _bad("shared_memory_region is not supported; GET /v2 lists what is")
    size = tensor.parameters.get("binary_data_size")
    if (size is None) == (tensor.data is msgspec.UNSET):
        raise _bad(f"Input {tensor.name} needs either data or binary_data_size")
    if (size or 0) != len(rest):
        raise _bad(
            f"Input {tensor.name} has {size or 0} bytes of binary data, and {len(rest)} are there"
        )
    return None if size is None else rest


def _pixels_of(tensor: InferInput, data: memoryview | None, bundle: Bundle) -> ImageBatch:
    preprocessing = bundle.manifest.preprocessing
    takes = [*dict.fromkeys(("UINT8", DATATYPES[preprocessing.pixel_type]))]
    if tensor.datatype not in takes:
        raise _bad(f"Input {IMAGES} is {' or '.join(takes)}, not {tensor.datatype}")
    one = [*preprocessing.input_size, 3]
    shape = tensor.shape
    if len(shape) != 4 or shape[1:] != one or not shape[0]:
        raise _bad(f"Input {IMAGES} has shape [N, {', '.join(map(str, one))}], not {shape}")
    dtype = _DTYPES[tensor.datatype]
    if data is not None:
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise _bad(f"Input {IMAGES} of shape {shape} does not have {len(data)} bytes")
        pixels = np.frombuffer(data, dtype)
    else:
        assert isinstance(tensor.data, msgspec.Raw)  # noqa: S101  # or the data is binary
        pixels = _numbers_of(tensor.data, tensor.datatype, shape)
        pixels = pixels.astype(dtype)
    if tensor.datatype == "FP32" and not (np.isfinite(pixels).all() and pixels.min() >= 0):
        raise _bad(f"Input {IMAGES} has values that are not finite, or below 0")
    if tensor.datatype == "FP32" and 0 < pixels.max() <= 1:
        raise _bad(f"Input {IMAGES} is in 0..255, and this one is in 0..1")
    return pixels.reshape(shape)


def _numbers_of(data: msgspec.Raw, datatype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """The numbers of a tensor in JSON: flat, or nested as its shape is."""
    is_nested, is_bytes = _is_nested(data), datatype == "UINT8"
    kind: Any = list[int] if is_bytes else list[float]
    if is_nested:
        number: Any = _Byte if is_bytes else float
        kind = list[list[list[list[number]]]]
    try:
        values = msgspec.json.decode(data, type=kind)
        # Four times as fast as an array of Python's numbers, and as strict.
        flat_bytes = is_bytes and not is_nested
        array = np.frombuffer(bytes(values), np.uint8) if flat_bytes else np.array(values)
    except (msgspec.MsgspecError, ValueError) as exc:  # ValueError: of different lengths, or > 255
        raise _bad(f"The data of input {IMAGES} is no tensor: {exc}") from exc
    if array.shape != (tuple(shape) if is_nested else (math.prod(shape),)):
        raise _bad(f"The data of input {IMAGES} has shape {[*array.shape]}, not {[*shape]}")
    return array


def _is_nested(data: msgspec.Raw) -> bool:
    """Whether what JSON has there is a list of lists."""
    return bytes(memoryview(data)[:64]).lstrip()[1:].lstrip().startswith(b"[")


def _files_of(tensor: InferInput, data: memoryview | None) -> list[bytes]:
    """What the files of an input of BYTES hold; in JSON they are base64."""
    if tensor.datatype != "BYTES":
        raise _bad(f"Input {IMAGE_FILE} is BYTES, not {tensor.datatype}")
    shape = tensor.shape
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or not shape[0]:
        raise _bad(f"Input {IMAGE_FILE} has shape [N] or [N, 1], not {shape}")
    if data is not None:
        files = _elements_of(data)
    else:
        assert isinstance(tensor.data, msgspec.Raw)  # noqa: S101  # or the data is binary
        kind: Any = list[tuple[str]] if _is_nested(tensor.data) else list[str]
        try:
            texts = msgspec.json.decode(tensor.data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise _bad(f"The data of input {IMAGE_FILE} is no list of base64: {exc}") from exc
        texts = [text if isinstance(text, str) else text[0] for text in texts]
        files = [decoded_base64(text, f"image {place}") for place, text in enumerate(texts)]
    if len(files) != shape[0]:
        raise _bad(f"Input {IMAGE_FILE} of shape {shape} has {len(files)} elements")
    return files


def _elements_of(data: memoryview) -> list[bytes]:
    files: list[bytes] = []
    start = 0
    while start < len(data):
        end = start + _LENGTH_BYTES
        size = int.from_bytes(data[start:end], "little")
        start, end = end, end + size
        if end > len(data):
            raise _bad(f"Element {len(files)} of input {IMAGE_FILE} is longer than its data")
        files.append(bytes(data[start:end]))
        start = end
    return files


def write_answer(call: Call, bundle: Bundle, logits: Logits) -> tuple[bytes, dict[str, str]]:
    """Make the answer of a request.

    Args:
        call: The request.
        bundle: What answered.
        logits: (N, L) float32.

    Returns:
        The body and its headers. In JSON a number that is not finite is null, as JSON has none.
    """
    values = {LOGITS: logits}
    if any(each.name == PROBABILITIES for each in call.outputs):
        head = bundle.manifest.labels.head
        values[PROBABILITIES] = head.probabilities(logits).astype(np.float32)
    outputs, chunks = [], []
    for name, is_binary in call.outputs:
        array = np.ascontiguousarray(values[name], "<f4")
        shape = [*array.shape]
        if is_binary:
            chunks.append(array.tobytes())
            size = {"binary_data_size": array.nbytes}
            outputs.append(InferOutput(name, "FP32", shape, parameters=size))
        else:
            outputs.append(InferOutput(name, "FP32", shape, data=array.ravel().tolist()))
    text = msgspec.json.encode(InferResponse(bundle.name, VERSION, outputs, call.id))
    if not chunks:
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    return b"".join([text, *chunks]), headers
