"""The execution contexts of an engine, and the kernels that they are made of.

TensorRT for RTX compiles an engine's kernels for the GPU when a context is made and when a batch
size is new. The contexts of a session share them, and a file keeps them for the next process.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from deploykit.errors import DeviceError
from deploykit.runtime._tensorrt_slot import TensorRT, ask
from deploykit.system import files


class Contexts:
    """Makes the execution contexts of an engine.

    Close it after the contexts: they use its kernels.

    Args:
        tensorrt: The flavour that built the engine.
        engine: TensorRT's.
        cache: The file that keeps the compiled kernels, if it is TensorRT for RTX; None for none.
    """

    def __init__(self, tensorrt: TensorRT, engine: Any, cache: Path | None) -> None:
        self._log, self._trt = tensorrt.log, tensorrt.trt
        self._engine = engine
        self._config: Any = None
        self._kernels: Any = None
        self._cache = cache
        self._cached = b""

    def make(self) -> Any:
        """Make one more; CUDA has already been used by this thread.

        Raises:
            DeviceError: TensorRT fails.
        """
        create = self._engine.create_execution_context
        arguments = []
        if hasattr(self._trt, "CudaGraphStrategy"):
            if self._config is None:
                self._config = self._new_config()
            arguments = [self._config]
        return ask(self._log, "making an execution context", create, *arguments)

    def close(self) -> None:
        """Keep the kernels in the file, if there are new ones; closing twice is fine."""
        kernels, cache = self._kernels, self._cache
        self._engine = self._config = self._kernels = None
        if kernels is None or cache is None:
            return
        # It spares the next process the compilation; no result should fail for it.
        with contextlib.suppress(OSError, DeviceError):
            content = bytes(ask(self._log, "serializing the kernels", kernels.serialize))
            if content != self._cached:
                cache.parent.mkdir(parents=True, exist_ok=True)
                with files.replacing(cache, follow_link=False) as partial:
                    partial.write_bytes(content)

    def _new_config(self) -> Any:
        trt, log = self._trt, self._log
        config = ask(log, "making a runtime config", self._engine.create_runtime_config)
        whole = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # The default computes with other kernels until the right ones are compiled: what was proven
        # would not be what runs.
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER

        def choose() -> bool:
            config.cuda_graph_strategy = whole
            config.dynamic_shapes_kernel_specialization_strategy = eager
            # Python does not pass on that TensorRT refused one.
            found = config.dynamic_shapes_kernel_specialization_strategy
            return bool(config.cuda_graph_strategy == whole and found == eager)

        ask(log, "choosing CUDA graphs and eager kernels", choose)
        kernels = ask(log, "making a runtime cache", config.create_runtime_cache)
        self._load(kernels)
        ask(log, "setting the runtime cache", config.set_runtime_cache, kernels)
        self._kernels = kernels
        return config

    def _load(self, kernels: Any) -> None:
        """Take the kernels from the file, unless it is of another GPU or release, or damaged."""
        if self._cache is None:
            return
        with contextlib.suppress(OSError, DeviceError):
            content = self._cache.read_bytes()
            ask(self._log, f"reading {self._cache}", kernels.deserialize, content)
            self._cached = content
