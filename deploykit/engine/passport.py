"""Passports: the JSON beside an engine that says what it is and where it runs.

An engine tells nothing about itself without a GPU of the right kind and the TensorRT that built it,
but for its first bytes. TensorRT does not document them. They were found by building engines with
TensorRT for RTX 1.7 for one compute capability after another and comparing, which
tests/engine/test_passport.py repeats. What is not recognised in them is unknown, not wrong.
"""

from __future__ import annotations

import difflib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from deploykit.bundle.manifest import printable
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.errors import BundleError, UsageError
from deploykit.specs.engine import Flavour, Profile
from deploykit.specs.model import KeptNode, Precision, TensorSpec
from deploykit.specs.value import Value, decode_json, schema_of
from deploykit.system.files import read_file, replacing
from deploykit.system.gpu import Gpu
from deploykit.system.text import command_line

#: Any GPU of compute capability 8.0 or newer.
PORTABLE = "portable"
#: The GPU of this machine.
CURRENT = "current"
#: The compute capabilities that TensorRT for RTX builds for, oldest first; ``sm89`` is the RTX 40
#: series. See "Supported Compute Capabilities" in its support matrix.
COMPUTE_CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
#: "CPU-Only AOT and TensorRT-RTX Engines" in its documentation: Turing has to be asked for.
OLDEST_PORTABLE = (8, 0)
TARGETS = (PORTABLE, CURRENT, *COMPUTE_CAPABILITIES)


def parse_targets(texts: Sequence[str], flavour: Flavour = "tensorrt_rtx") -> tuple[str, ...]:
    """The targets that a user names.

    Args:
        texts: As written, in any case and order; none for the flavour's default, which is
            ``portable`` for TensorRT for RTX.
        flavour: TensorRT itself builds for the GPU at hand only, ``current``.

    Returns:
        ``portable`` alone, ``current`` alone, or compute capabilities, oldest first, each once.

    Raises:
        UsageError: One is unknown, they exclude each other, or the flavour does not build for them.
    """
    named = {text.strip().lower() for text in texts}
    for target in sorted(named - set(TARGETS)):
        close = difflib.get_close_matches(target, TARGETS, n=1)
        raise UsageError(
            f"There is no target {target!r}; there are {', '.join(TARGETS)}.",
            hint=f"Did you mean {close[0]}?"
            if close
            else "RTX 20 is sm75, RTX 30 sm86, RTX 40 sm89, RTX 50 sm120.",
        )
    targets = tuple(target for target in TARGETS if target in named)
    if len(targets) > 1 and {PORTABLE, CURRENT} & named:
        raise UsageError(
            f"Targets {' and '.join(targets)} exclude each other.",
            hint=f"{PORTABLE} and {CURRENT} stand alone; several compute capabilities can be given "
            "together: --target sm86 --target sm89",
        )
    if flavour == "tensorrt" and targets not in ((), (CURRENT,)):
        raise UsageError(
            f"TensorRT builds for the GPU of this machine only, not for {' and '.join(targets)}.",
            hint="Leave --target out, or build with --flavour tensorrt_rtx.",
        )
    return targets or ((CURRENT,) if flavour == "tensorrt" else (PORTABLE,))


def runs_on(targets: tuple[str, ...], gpu: Gpu) -> bool:
    """Whether an engine of TensorRT for RTX may run on a GPU.

    Args:
        targets: Compute capabilities, or ``portable``, which goes for GPUs that nobody has tried
            too; not ``current``, which does not say which GPU that was.
        gpu: The GPU.
    """
    if targets == (PORTABLE,):
        return gpu.compute_capability >= OLDEST_PORTABLE
    return gpu.target in targets


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


def check_plan(data: bytes, flavour: Flavour, size: int | None = None) -> str | None:
    """Say in words why these bytes are no engine of a flavour; None when nothing speaks against it.

    TensorRT itself answers such bytes with None and a line that tells nobody what to do.

    Args:
        data: The engine, or its first 64 bytes.
        flavour: What it should be an engine of.
        size: How many bytes it has; None for those of ``data``.
    """
    size = len(data) if size is None else size
    start = data[: _RTX_HEADER.size]
    if len(start) < _RTX_HEADER.size:
        return f"it is no engine: it has only {size} bytes"
    if start.isascii() and " ".join(start.decode().split()).isprintable():
        return f"it is no engine but a text that begins with {start.decode()!r}"
    header = read_header(data)
    if header is None:
        return None
    if header.flavour != flavour:
        return f"it is an engine of {header.flavour}, not of {flavour}"
    if header.size is not None and header.size != size:
        return f"it is damaged: it has {size} bytes and should have {header.size}"
    return None


SCHEMA = 3
_MAX_BYTES = 2**20


class BuiltOn(Value, frozen=True):
    """The GPU that an engine was built on.

    Attributes:
        name: ``NVIDIA GeForce RTX 4070``.
        compute_capability: Major and minor, ``(8, 9)``.
    """

    name: str
    compute_capability: tuple[int, int]


class Passport(Value, frozen=True):
    """What an engine is, where it runs, and what shows that it may.

    Attributes:
        schema: The version of this layout.
        flavour: The TensorRT that built it and that runs it.
        version: Of that TensorRT, in full.
        targets: What it was built for, as ``--target`` takes it.
        gpu: The GPU that it was built on, when the target is ``current``; None otherwise.
        profile: The batch sizes that it takes.
        workspace_bytes: The most device memory that a layer was allowed; None for all.
        inputs: Names, types and shapes.
        outputs: Likewise.
        precision: Of the graph that it was built from.
        kept: The nodes that stay in FP32 in that graph.
        deploy_graph: That graph, relative to the bundle.
        deploy_graph_sha256: Of it when the engine was built.
        engine_sha256: In lowercase hex.
        engine_bytes: Its size.
        build_seconds: How long the build took.
        created: When, UTC, ISO 8601.
        proof: What shows that the deploy graph decides as the trained model, and how: ``rehearsed``
            or ``executed``; None when nothing does.
    """

    schema: int
    flavour: Flavour
    version: str
    targets: tuple[str, ...]
    gpu: BuiltOn | None
    profile: Profile
    workspace_bytes: int | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: Precision
    kept: tuple[KeptNode, ...]
    deploy_graph: str
    deploy_graph_sha256: str
    engine_sha256: str
    engine_bytes: int
    build_seconds: float
    created: str
    proof: KeptVerdict | None

    def __post_init__(self) -> None:
        if (self.gpu is None) == (self.targets == (CURRENT,)):
            raise ValueError(f"targets {self.targets} do not go with GPU {self.gpu}")

    @property
    def engine(self) -> str:
        """The engine's file name, ``tensorrt_rtx-1.7.1-sm86+sm89-fp16-b1-8-32.engine``.

        An engine that was built on a GPU and for it is named after that GPU:
        ``tensorrt-11.4.0-nvidia-geforce-rtx-4070-sm89-fp16-b1-8-32.engine``. A limit to its
        workspace comes last: ``...-b1-8-32-ws512MiB.engine``.
        """
        device = "+".join(self.compute_capabilities)
        if self.gpu is not None:
            model = re.sub("[^a-z0-9]+", "-", self.gpu.name.lower()).strip("-")
            device = f"{model}-{device}"
        release = ".".join(self.version.split(".")[:3])
        batches = f"b{self.profile.min_batch}-{self.profile.opt_batch}-{self.profile.max_batch}"
        limit = "" if self.workspace_bytes is None else f"-ws{_binary(self.workspace_bytes)}"
        return f"{self.flavour}-{release}-{device}-{self.precision}-{batches}{limit}.engine"

    @property
    def needs(self) -> str:
        """What it runs on, for people: ``compute capability sm86 or sm89``."""
        if self.flavour == "tensorrt" and self.gpu is not None:
            return self.gpu.name
        if self.targets == (PORTABLE,):
            return f"compute capability {_sm(OLDEST_PORTABLE)} or newer"
        return f"compute capability {' or '.join(self.compute_capabilities)}"

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """The targets, ``current`` resolved: ``sm86``, ``sm89``, or ``portable``."""
        return self.targets if self.gpu is None else (_sm(self.gpu.compute_capability),)


def passport_path(engine: Path) -> Path:
    """Where an engine's passport is: beside it, ``<engine>.json``."""
    return engine.with_name(f"{engine.name}.json")


def write_passport(path: Path, passport: Passport) -> None:
    """Write a passport so that a reader sees it whole or not at all."""
    data = msgspec.json.format(msgspec.json.encode(passport), indent=2)
    with replacing(path, follow_link=False) as partial:
        partial.write_bytes(data + b"\n")


def read_passport(path: Path) -> Passport:
    """Read a passport strictly.

    Raises:
        BundleError: It is missing, no JSON, of another schema, or has unknown or missing fields.
    """
    hint = f"Build the engine again: {_build_by_name(path)}"
    try:
        data = read_file(path, limit=_MAX_BYTES)
    except OSError as exc:
        raise BundleError(
            f"The engine has no passport: {printable(path)} cannot be read ({exc.strerror}).",
            hint=hint,
        ) from exc
    try:
        schema = schema_of(data)
        if schema == SCHEMA:
            return decode_json(data, Passport)
    except ValueError as exc:
        raise BundleError(f"{printable(path)} is damaged: {exc}.", hint=hint) from exc
    raise BundleError(
        f"{printable(path)} has schema {schema}; this version of deploykit reads schema {SCHEMA}.",
        hint="Update deploykit." if schema > SCHEMA else hint,
    )


class Reason(NamedTuple):
    """Why an engine cannot run here.

    Attributes:
        message: In one sentence.
        hint: What to do about it, with the command.
    """

    message: str
    hint: str


def reason(passport: Passport, *, tensorrt_version: str, gpu: Gpu) -> Reason | None:
    """Say why an engine cannot run on a GPU, and what to do; None when nothing is known.

    Args:
        passport: The engine's.
        tensorrt_version: Of the engine's flavour on this machine, in full.
        gpu: This machine's.
    """
    if passport.version != tensorrt_version:
        misfit = (
            f"was built by {passport.flavour} {passport.version} and runs on no other; "
            f"this machine has {tensorrt_version}"
        )
    # TensorRT times its kernels on one model of GPU and supports an engine on no other.
    elif (
        passport.gpu != BuiltOn(name=gpu.name, compute_capability=gpu.compute_capability)
        if passport.flavour == "tensorrt"
        else not runs_on(passport.compute_capabilities, gpu)
    ):
        misfit = f"was built for {passport.needs}; this machine has {gpu.name} ({gpu.target})"
    else:
        return None
    target = gpu.target if gpu.target in COMPUTE_CAPABILITIES else PORTABLE
    return Reason(
        f"{passport.engine} {misfit}.", hint=f"Build one: {how_to_build_again(passport, target)}"
    )


def how_to_build_again(passport: Passport, *targets: str) -> str:
    """The command that builds an engine like this one, for the same targets or for others."""
    words = ["deploykit", "build-trt", "--flavour", passport.flavour]
    if passport.flavour == "tensorrt_rtx":
        for target in targets or passport.targets:
            words += ("--target", target)
    words += ("--precision", passport.precision)
    return command_line([*words, *size_options(passport.profile, passport.workspace_bytes)])


def size_options(profile: Profile, workspace_bytes: int | None) -> list[str]:
    """The options for batches and memory that are not the default's."""
    words: list[str] = []
    default = Profile()
    for name in ("min_batch", "opt_batch", "max_batch"):
        batch = getattr(profile, name)
        if batch != getattr(default, name):
            words += (f"--{name.replace('_', '-')}", str(batch))
    if workspace_bytes is not None:
        words += ("--workspace", _binary(workspace_bytes))
    return words


#: The flavour and the precision in the name of a passport, see :attr:`Passport.engine`.
_NAME = re.compile(r"(?P<flavour>tensorrt(?:_rtx)?)-.*-(?P<precision>fp32|fp16|int8)-b\d.*")


def _build_by_name(passport: Path) -> str:
    """The command that builds an engine again whose passport cannot be read."""
    words = ["deploykit", "build-trt"]
    if passport.parent.name == "engines":
        words += ("--bundle", str(passport.parent.parent))
    if named := _NAME.fullmatch(passport.name):
        words += ("--flavour", named["flavour"], "--precision", named["precision"])
    return command_line(words)


def _binary(count: int) -> str:
    """A number of bytes as ``--workspace`` takes it, exactly: ``512MiB``."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return f"{count / 2**10}KiB"


def _sm(compute_capability: tuple[int, int]) -> str:
    major, minor = compute_capability
    return f"sm{major}{minor}"
