"""The smallest real thing that each runtime can do: ``python -m ...probes NAME [ARGUMENT ...]``.

A process of its own, because a broken library may crash, hang, or stay loaded. It ends with 0 and
what it found on stdout; with ``FELL_BACK`` if the CPU computed instead of the GPU; or with another
code and the library's own error as the last line of stderr.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from deploykit.commands.doctor.run import FELL_BACK
from deploykit.errors import DependencyError, DeploykitError
from deploykit.specs.engine import Flavour
from deploykit.system.deps import need

#: An ONNX graph that negates an image with a convolution, because ONNX Runtime loads cuDNN only
#: for one. Made once, so that onnx need not be installed, with ``onnx.parser.parse_model(text)
#: .SerializeToString()`` from ``<ir_version: 8, opset_import: ["" : 13]> g (float[1,1,2,2] x) =>
#: (float[1,1,2,2] y) <float[1,1,1,1] w = {-1}> { y = Conv(x, w) }``.
GRAPH = base64.b64decode(
    "CAg6ZQoRCgF4CgF3EgF5IgRDb252OgASAWcqEwgBCAEIAQgBEAEiBAAAgL9CAXdaGwoBeBIWChQIARIQCgIIAQoCCAEK"
    "AggCCgIIAmIbCgF5EhYKFAgBEhAKAggBCgIIAQoCCAIKAggCQgQKABAN"
)
IMAGE = np.ones((1, 1, 2, 2), np.float32)


def _onnxruntime(provider: str) -> str:
    ort = need("onnxruntime")
    ort.set_default_logger_severity(3)  # errors only: the last one says why CUDA does not start
    if provider == "CUDAExecutionProvider":
        if provider not in ort.get_available_providers():
            raise RuntimeError(f"this onnxruntime {ort.__version__} is built without CUDA")
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find
            ort.preload_dlls()
    session = ort.InferenceSession(GRAPH, providers=[provider])
    if session.get_providers()[0] != provider:
        sys.exit(FELL_BACK)
    _check(session.run(None, {"x": IMAGE})[0])
    return str(ort.__version__)


def _openvino() -> str:
    ov = need("openvino")
    core = ov.Core()
    model = core.compile_model(core.read_model(GRAPH), "CPU")
    _check(model(IMAGE)[0])
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precisions = [each for each in ("FP32", "BF16", "INT8") if each in capabilities]
    return f"{ov.__version__.partition('-')[0]}, computes in {', '.join(precisions)}"


def _tensorrt(flavour: Flavour, task: str) -> str:
    """Build an engine, and for the task ``run`` let the GPU compute with it."""
    from deploykit.engine.flavour import make, open_flavour, quoting

    tensorrt = open_flavour(flavour)
    trt, log = tensorrt.trt, tensorrt.log
    builder = make(tensorrt, "builder", lambda: trt.Builder(log))
    network = builder.create_network(0)
    parser = make(tensorrt, "parser", lambda: trt.OnnxParser(network, log))
    with log.capture() as lines:
        if not parser.parse(GRAPH):
            raise RuntimeError(quoting("the parser refuses a convolution", lines))
    config = builder.create_builder_config()
    plan = make(tensorrt, "engine", lambda: builder.build_serialized_network(network, config))
    if task == "run":
        runtime = make(tensorrt, "runtime", lambda: trt.Runtime(log))
        engine = make(tensorrt, "engine", lambda: runtime.deserialize_cuda_engine(plan))
        context = make(tensorrt, "context", engine.create_execution_context)
        _check(make(tensorrt, "answer", lambda: _executed(context)))
    return str(tensorrt.version)


def _executed(context: Any) -> Any:
    """What the GPU answers for the image; None if TensorRT does not start."""
    from deploykit.runtime._cuda import DeviceBuffer, PinnedBuffer, Stream

    size = IMAGE.nbytes
    with PinnedBuffer(IMAGE.shape, np.float32) as host:
        host.array[:] = IMAGE
        with DeviceBuffer(size) as x, DeviceBuffer(size) as y, Stream() as stream:
            stream.copy_in(x, host, size)
            context.set_tensor_address("x", x.address)
            context.set_tensor_address("y", y.address)
            if not context.execute_async_v3(stream.address):
                return None
            stream.copy_out(host, y, size)
        return host.array.copy()  # closing the stream has waited for it


def _torch(device: str) -> str:
    torch = need("torch")
    need("torchvision")
    need("safetensors")
    weight = -torch.ones(1, 1, 1, 1, device=device)
    answer = torch.nn.functional.conv2d(torch.from_numpy(IMAGE).to(device), weight)
    _check(answer.cpu().numpy())
    return f"{torch.__version__}, built for CUDA {torch.version.cuda or '(none)'}"


def _import(*modules: str) -> str:
    found = (importlib.import_module(name) for name in modules)
    return ", ".join(f"{m.__name__} {getattr(m, '__version__', '')}".strip() for m in found)


def _check(answer: Any) -> None:
    if not np.array_equal(answer, -IMAGE):
        raise ArithmeticError(f"it computes {np.ravel(answer)[:4]} where {-IMAGE.ravel()} is right")


PROBES: dict[str, Callable[..., str]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "torch": _torch,
    "import": _import,
}


def main(name: str, *arguments: str) -> None:
    """Run one probe, and end the process with its result."""
    try:
        print(PROBES[name](*arguments))  # noqa: T201  # what the process is for
    except Exception as exc:  # noqa: BLE001  # a broken library may raise anything
        # What was caught to say how to install a package is the library's own error.
        error = (isinstance(exc, DependencyError) and exc.__cause__) or exc
        message = error.message if isinstance(error, DeploykitError) else str(error)
        sys.exit(f"{type(error).__name__}: {' '.join(message.split())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
