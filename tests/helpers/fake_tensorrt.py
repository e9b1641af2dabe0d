"""A TensorRT without a GPU: its engine's logits are the means of the three colours.

It runs on :class:`fake_cuda.FakeCuda`. Like TensorRT it says no by answering None or False and
logs why; it captures only what ran before at that size; it takes an error that somebody left in
CUDA for its own; and a graph that was captured before the context changed gives garbage.
"""

import contextlib
from collections import deque
from enum import Enum
from types import SimpleNamespace

import numpy as np
from fake_cuda import SUCCESS

PLAN = b"ftrt the plan of an engine"
CLASSES = 3


class FakeLog:
    def __init__(self):
        self.lines = deque()

    @contextlib.contextmanager
    def capture(self):
        self.lines = deque()
        yield self.lines


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class DataType(Enum):
    UINT8 = 0
    FLOAT = 1
    HALF = 2


NUMPY_TYPES = {DataType.UINT8: np.uint8, DataType.FLOAT: np.float32}


class Context:
    def __init__(self, machine, engine, config):
        self.config = config
        self._machine = machine
        self._engine = engine
        self._shape = None
        self._changes = 0
        self._warm = False
        self._addresses = {}
        machine.cuda.ledger["context", id(self)] = None
        if config is not None:
            config.kernels.compile("a context")

    def __del__(self):
        del self._machine.cuda.ledger["context", id(self)]

    def set_input_shape(self, name, shape):
        if self._machine.refuses("set_input_shape"):
            return False
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        if not least[0] <= shape[0] <= most[0]:
            self._machine.log.lines.append(f"the profile has no {shape}")
            return False
        self._shape, self._warm = shape, False
        self._changes += 1
        return True

    def infer_shapes(self):
        if self._machine.refuses("infer_shapes"):
            return ["images"]
        return []

    def set_tensor_address(self, name, address):
        if self._machine.refuses("set_tensor_address"):
            return False
        self._machine.cuda.bytes_at(address)
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        if self._machine.refuses("execute_async_v3"):
            return False
        if self._machine.cuda.cudaGetLastError() != (SUCCESS,):
            self._machine.log.lines.append("a launch failed")
            return False
        queue = self._machine.cuda.stream(stream)
        if queue.recording is not None and not (self._warm and self._machine.can_capture):
            self._machine.log.lines.append("this cannot be captured")
            queue.spoilt = True
            return False
        if self.config is not None:
            self.config.kernels.compile(f"a batch of {self._shape[0]}")
        shape, changes, addresses = self._shape, self._changes, dict(self._addresses)
        count, size, cuda = shape[0], int(np.prod(shape)), self._machine.cuda
        pixels = NUMPY_TYPES[self._engine.get_tensor_dtype("images")]

        def kernel():
            self._machine.executed.append(count)
            images = cuda.bytes_at(addresses["images"]).view(pixels)[:size].reshape(shape)
            self._machine.seen = images.copy()
            logits = cuda.bytes_at(addresses["logits"]).view(np.float32)[: count * CLASSES]
            stale = changes != self._changes
            logits[:] = np.nan if stale else images.mean((1, 2), dtype=np.float32).ravel()

        queue.add(kernel)
        self._warm = self._warm or queue.recording is None
        return True


class Engine:
    """An engine for batches of 1 to 4, or as it is told."""

    def __init__(self, machine):
        self._machine = machine
        self._tensors = machine.tensors
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return self._tensors[name][0]

    def get_tensor_dtype(self, name):
        return self._tensors[name][1]

    def get_tensor_shape(self, name):
        return self._tensors[name][2]

    def get_tensor_profile_shape(self, name, profile):
        return [(batch, *self._tensors[name][2][1:]) for batch in self._machine.batches]

    def create_runtime_config(self):
        if self._machine.refuses("create_runtime_config"):
            return None
        return RuntimeConfig(self._machine)

    def create_execution_context(self, config=None):
        if self._machine.refuses("create_execution_context"):
            return None
        self._machine.configs.append(config)
        return Context(self._machine, self, config)


class RuntimeConfig:
    """Of TensorRT for RTX: a strategy that it refuses stays as it was."""

    def __init__(self, machine):
        self._machine = machine
        self._graphs = self._specialization = None
        self.kernels = None

    @property
    def cuda_graph_strategy(self):
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy):
        if not self._machine.refuses("cuda_graph_strategy"):
            self._graphs = strategy

    @property
    def dynamic_shapes_kernel_specialization_strategy(self):
        return self._specialization

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, strategy):
        if not self._machine.refuses("dynamic_shapes_kernel_specialization_strategy"):
            self._specialization = strategy

    def create_runtime_cache(self):
        return None if self._machine.refuses("create_runtime_cache") else Kernels(self._machine)

    def set_runtime_cache(self, kernels):
        if self._machine.refuses("set_runtime_cache"):
            return False
        self.kernels = kernels
        return True


class Kernels:
    """The compiled kernels, as a cache: their names, after the name of the GPU."""

    def __init__(self, machine):
        self._machine = machine
        self._names = []

    def compile(self, name):
        if name not in self._names:
            self._names.append(name)
            self._machine.compiled.append(name)

    def serialize(self):
        if self._machine.refuses("serialize"):
            return None
        return memoryview("\n".join([self._machine.gpu, *self._names]).encode())

    def deserialize(self, content):
        # It compares the content with the device, so that somebody must have used that before.
        assert "cudaMalloc" in self._machine.cuda.faults.calls
        gpu, *names = bytes(content).decode(errors="replace").split("\n")
        if self._machine.refuses("deserialize") or gpu != self._machine.gpu:
            self._machine.log.lines.append("these kernels are of something else")
            return False
        self._names = names
        return True


class Runtime:
    def __init__(self, machine):
        self._machine = machine

    def deserialize_cuda_engine(self, plan):
        if self._machine.refuses("deserialize_cuda_engine") or plan != PLAN:
            self._machine.log.lines.append("this is no engine of this version")
            return None
        return Engine(self._machine)


class FakeTensorRT:
    """An open flavour, as ``deploykit.engine`` hands it over.

    Attributes:
        executed: The size of every batch that the device computed, in order.
        seen: The images of the last of them.
        configs: What each execution context was made with.
        gpu: What kernels are compiled for.
        compiled: What kernels were compiled for, in order.
    """

    def __init__(self, cuda, flavour="tensorrt", *, size=(4, 5), batches=(1, 2, 4)):
        self.cuda = cuda
        self.flavour = flavour
        self.log = FakeLog()
        self.can_capture = flavour == "tensorrt"
        self.batches = batches
        self.tensors = {
            "images": (Mode.INPUT, DataType.UINT8, (-1, *size, 3)),
            "logits": (Mode.OUTPUT, DataType.FLOAT, (-1, CLASSES)),
        }
        self.executed = []
        self.seen = None
        self.configs = []
        self.gpu = "sm89"
        self.compiled = []
        self.trt = SimpleNamespace(Runtime=self._start)
        if flavour == "tensorrt_rtx":
            self.trt.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
            self.trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def refuses(self, call):
        if not self.cuda.faults.strike(call):
            return False
        self.log.lines.append(f"{call} is refused")
        return True

    def _start(self, log):
        assert log is self.log
        return None if self.refuses("Runtime") else Runtime(self)
