"""Machines with packages that are made of a few lines each, for the processes of ``doctor``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploykit.commands.doctor import run

ONNX_RUNTIME = """
__version__ = "1.31.1"

def set_default_logger_severity(level):
    assert level == 3

def preload_dlls():
    print("it prints to stdout")

def get_available_providers():
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]

class InferenceSession:
    def __init__(self, graph, providers):
        self.providers = providers

    def get_providers(self):
        return self.providers

    def run(self, outputs, inputs):
        return [-inputs["x"]]
"""
TORCH = """
from types import SimpleNamespace

__version__, version = "2.15.0", SimpleNamespace(cuda="13.2")

def ones(*shape, device):
    return 1.0

class Tensor:
    def __init__(self, array):
        self.array = array

    def to(self, device):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array

from_numpy = Tensor
nn = SimpleNamespace(
    functional=SimpleNamespace(conv2d=lambda x, weight: Tensor(x.array * weight))
)
"""
#: Of both flavours. A plan, an engine and a context are one object.
TENSORRT = """
import ctypes

__version__ = "11.4.0"

class ILogger:
    class Severity:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

class OnnxParser:
    def __init__(self, network, log):
        pass

    def parse(self, graph):
        return True

class Builder:
    def __init__(self, log):
        pass

    def create_network(self, flags):
        return self

    def create_builder_config(self):
        return self

    def build_serialized_network(self, network, config):
        return Engine()

class Runtime:
    def __init__(self, log):
        pass

    def deserialize_cuda_engine(self, plan):
        return plan

class Engine:
    def create_execution_context(self):
        self.addresses = {}
        return self

    def set_tensor_address(self, name, address):
        self.addresses[name] = (ctypes.c_float * 4).from_address(address)

    def execute_async_v3(self, stream):
        assert stream == 7
        self.addresses["y"][:] = [-each for each in self.addresses["x"]]
        return True
"""
CUDA = """
import ctypes
from enum import IntEnum

cudaError_t = IntEnum("cudaError_t", {"cudaSuccess": 0})
cudaMemcpyKind = IntEnum("cudaMemcpyKind", ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"))
cudaHostAllocDefault = cudaStreamNonBlocking = 0
memory = []

def cudaMalloc(size):
    memory.append((ctypes.c_ubyte * size)())
    return cudaError_t.cudaSuccess, ctypes.addressof(memory[-1])

def cudaHostAlloc(size, flags):
    return cudaMalloc(size)

def cudaStreamCreateWithFlags(flags):
    return cudaError_t.cudaSuccess, 7

def cudaMemcpyAsync(target, source, size, kind, stream):
    ctypes.memmove(target, source, size)
    return (cudaError_t.cudaSuccess,)

def cudaFree(handle):
    return (cudaError_t.cudaSuccess,)

cudaFreeHost = cudaStreamSynchronize = cudaStreamDestroy = cudaFree
"""
OPENVINO = """
__version__ = "2026.4.1-22982-releases"

class Core:
    def read_model(self, graph):
        return graph

    def compile_model(self, model, device):
        return lambda image: [-image]

    def get_property(self, device, name):
        return ["FP32", "BIN", "INT8"]
"""
PLAIN = ("torchvision", "safetensors", "timm", "matplotlib", "skimage", "pyarrow", "onnx")


class MadeMachine:
    """A machine on which every runtime works, until a test replaces one.

    Args:
        site: A folder before all others from which Python imports.
        monkeypatch: Takes it back.
    """

    def __init__(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._site, self._monkeypatch = site, monkeypatch
        site.mkdir()
        for name in (*PLAIN, "onnx_ir", "onnxscript"):
            self.module(name, "__version__ = '1.2'")
        self.module("onnxruntime", ONNX_RUNTIME)
        self.module("openvino", OPENVINO)
        self.module("torch", TORCH)
        self.module("tensorrt", TENSORRT)
        self.module("tensorrt_rtx", TENSORRT)
        self.module("cuda/bindings/__init__", "")
        self.module("cuda/__init__", "")
        self.module("cuda/bindings/runtime", CUDA)
        self.module("cuda/bindings/utils", "get_cuda_native_handle = int")
        monkeypatch.syspath_prepend(site)

    def module(self, name: str, source: str) -> None:
        """A module, in the place of what is installed."""
        file = self._site / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")

    def package(self, name: str, version: str, *lines: str, module: str = "") -> None:
        """The metadata of a package."""
        record = self._site / f"{re.sub('-', '_', name)}-{version}.dist-info"
        record.mkdir()
        head = ("Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}")
        (record / "METADATA").write_text("\n".join((*head, *lines)), encoding="utf-8")
        (record / "top_level.txt").write_text(module, encoding="utf-8")

    def look(self, *names: str) -> dict[str, run.Finding]:
        """What is found, by name; only the checks of these names are made, or all."""
        checks = tuple(check for check in run.CHECKS if check.name in names or not names)
        assert len(checks) >= len(names)
        with self._monkeypatch.context() as only:
            only.setattr(run, "CHECKS", checks)
            return {finding.name: finding for finding in run.examine_machine().findings}
