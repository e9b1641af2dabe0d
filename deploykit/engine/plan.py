"""What the first bytes of a serialized engine tell, without TensorRT and without a GPU.

TensorRT does not document them. They were found by building engines with TensorRT for RTX 1.7 for
one compute capability after another and comparing; tests/engine/test_plan.py repeats that. What is
not recognised here is unknown, not wrong.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from deploykit.engine.targets import COMPUTE_CAPABILITIES, PORTABLE
from deploykit.specs.engine import Flavour

#: Magic, 12 bytes not understood, size of the file, version, magic again, mask of targets.
_RTX_HEADER = struct.Struct("<4s12xQ4B4sQ")
_RTX_MAGIC, _TENSORRT_MAGIC = b"vtrt", b"ftrt"
#: Bit i of the mask is compute capability i; this one is set in portable engines only.
_PORTABLE_BIT = len(COMPUTE_CAPABILITIES)


@dataclass(frozen=True)
class PlanHeader:
    """What an engine says about itself.

    Attributes:
        flavour: Which TensorRT it is for.
        version: Of that TensorRT, in full; None where it is not understood.
        size: How many bytes it has when it is whole; None where it is not understood.
        targets: What it was built for; None where it is not understood.
    """

    flavour: Flavour
    version: str | None = None
    size: int | None = None
    targets: tuple[str, ...] | None = None


def read_header(data: bytes) -> PlanHeader | None:
    """Read the header of a serialized engine; None for one that is unknown.

    Args:
        data: The engine, or at least its first 40 bytes.
    """
    if data[:4] == _TENSORRT_MAGIC:
        return PlanHeader("tensorrt")
    if len(data) < _RTX_HEADER.size or data[:4] != _RTX_MAGIC:
        return None
    _, size, *version, magic, mask = _RTX_HEADER.unpack_from(data)
    if magic != _RTX_MAGIC:
        return PlanHeader("tensorrt_rtx")
    if mask >> _PORTABLE_BIT & 1:
        targets: tuple[str, ...] = (PORTABLE,)
    else:
        targets = tuple(sm for bit, sm in enumerate(COMPUTE_CAPABILITIES) if mask >> bit & 1)
    return PlanHeader("tensorrt_rtx", ".".join(map(str, version)), size, targets)


def check_plan(data: bytes, flavour: Flavour) -> str | None:
    """Say in words why these bytes are no engine of a flavour; None when nothing speaks against it.

    TensorRT itself answers such bytes with None and a line that tells nobody what to do.
    """
    start = data[: _RTX_HEADER.size]
    if len(start) < _RTX_HEADER.size:
        return f"it is no engine: it has only {len(data)} bytes"
    if start.isascii() and " ".join(start.decode().split()).isprintable():
        return f"it is no engine but a text that begins with {start.decode()!r}"
    header = read_header(data)
    if header is None:
        return None
    if header.flavour != flavour:
        return f"it is an engine of {header.flavour}, not of {flavour}"
    if header.size is not None and header.size != len(data):
        return f"it is damaged: it has {len(data)} bytes and should have {header.size}"
    return None
