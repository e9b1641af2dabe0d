"""A TensorRT engine: its flavour, opened, and the batch sizes that it is built for."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, Protocol, TypeAlias, get_args

from deploykit.errors import UsageError
from deploykit.specs.value import Value

Flavour: TypeAlias = Literal["tensorrt", "tensorrt_rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

#: A larger batch is a slip of the keyboard: 4096 photos of 224x224 take 0.6 GB as bytes alone.
MAX_ENGINE_BATCH = 4096


def is_flavour(runtime: str) -> bool:
    """Whether a runtime is one of TensorRT's flavours, which run engines instead of graphs."""
    return runtime in FLAVOURS


class Profile(Value, frozen=True):
    """The batch sizes that an engine is built for: TensorRT's optimization profile.

    Attributes:
        min_batch: The smallest batch that it takes, at least 1.
        opt_batch: The batch that it is tuned for.
        max_batch: The largest batch that it takes.
    """

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch <= MAX_ENGINE_BATCH:
            raise UsageError(
                f"Batch sizes must be 1 <= min <= opt <= max <= {MAX_ENGINE_BATCH}; "
                f"got min {self.min_batch}, opt {self.opt_batch}, max {self.max_batch}.",
                hint="Set them with --min-batch, --opt-batch and --max-batch.",
            )


class Log(Protocol):
    """The logger of a flavour: silent, and remembering while somebody listens."""

    def capture(self) -> contextlib.AbstractContextManager[deque[str]]:
        """Collect TensorRT's warnings and errors, the last few dozen, while the block runs."""
        ...


@dataclass(frozen=True)
class TensorRT:
    """An imported flavour of TensorRT.

    Attributes:
        flavour: Which one.
        version: In full, ``1.7.1.116``: engines fit no other.
        trt: The Python module.
        log: The one logger of this process; every TensorRT object is made with it.
    """

    flavour: Flavour
    version: str
    trt: ModuleType
    log: Log
