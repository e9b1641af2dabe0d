"""Passports: the JSON beside an engine that says what it is and where it runs.

An engine tells nothing about itself without a GPU of the right kind and the TensorRT that built it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from deploykit.bundle.manifest import printable
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.engine.targets import (
    COMPUTE_CAPABILITIES,
    CURRENT,
    OLDEST_PORTABLE,
    PORTABLE,
    runs_on,
)
from deploykit.errors import BundleError, UsageError
from deploykit.specs.engine import Flavour, Profile
from deploykit.specs.precision import KeptNode, Precision
from deploykit.specs.tensors import TensorSpec
from deploykit.specs.value import Value
from deploykit.system.files import read_file, replacing
from deploykit.system.gpu import Gpu
from deploykit.system.shell import command_line

SCHEMA = 1


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
        engine: The engine's file name.
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
    engine: str
    engine_sha256: str
    engine_bytes: int
    build_seconds: float
    created: str
    proof: KeptVerdict | None

    def __post_init__(self) -> None:
        if (self.gpu is None) == (self.targets == (CURRENT,)):
            raise ValueError(f"targets {self.targets} do not go with GPU {self.gpu}")

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


def engine_name(
    *,
    flavour: Flavour,
    version: str,
    targets: tuple[str, ...],
    gpu: Gpu | None,
    precision: Precision,
    profile: Profile,
    workspace_bytes: int | None,
) -> str:
    """The file name of an engine, ``tensorrt_rtx-1.7.1-sm86+sm89-fp16-b1-8-32.engine``.

    An engine that was built on a GPU and for it is named after that GPU:
    ``tensorrt-11.4.0-nvidia-geforce-rtx-4070-sm89-fp16-b1-8-32.engine``. A limit to its workspace
    comes last: ``...-b1-8-32-ws512MiB.engine``.
    """
    device = "+".join(targets)
    if gpu is not None:
        device = f"{re.sub('[^a-z0-9]+', '-', gpu.name.lower()).strip('-')}-{gpu.target}"
    release = ".".join(version.split(".")[:3])
    batches = f"b{profile.min_batch}-{profile.opt_batch}-{profile.max_batch}"
    limit = "" if workspace_bytes is None else f"-ws{_binary(workspace_bytes)}"
    return f"{flavour}-{release}-{device}-{precision}-{batches}{limit}.engine"


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
    hint = "Build the engine again: deploykit build-trt"
    try:
        data = read_file(path)
    except OSError as exc:
        raise BundleError(
            f"The engine has no passport: {printable(path)} cannot be read ({exc.strerror}).",
            hint=hint,
        ) from exc
    try:
        schema = msgspec.json.decode(data, type=_SchemaOnly).schema
        if schema == SCHEMA:
            return msgspec.json.decode(data, type=Passport)
    except (msgspec.MsgspecError, UsageError) as exc:
        raise BundleError(f"{printable(path)} is damaged: {exc}.", hint=hint) from exc
    raise BundleError(
        f"{printable(path)} has schema {schema}; this version of deploykit reads schema {SCHEMA}.",
        hint="Update deploykit." if schema > SCHEMA else hint,
    )


class _SchemaOnly(msgspec.Struct):
    schema: int


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
    elif not _runs_on(passport, gpu):
        misfit = f"was built for {passport.needs}; this machine has {gpu.name} ({gpu.target})"
    else:
        return None
    target = gpu.target if gpu.target in COMPUTE_CAPABILITIES else PORTABLE
    return Reason(
        f"{passport.engine} {misfit}.", hint=f"Build one: {_build_command(passport, (target,))}"
    )


def _runs_on(passport: Passport, gpu: Gpu) -> bool:
    """Whether an engine may run on a GPU; where nobody has tried, it may."""
    if passport.flavour == "tensorrt":
        # TensorRT times its kernels on one model of GPU and supports an engine on no other.
        return passport.gpu == BuiltOn(name=gpu.name, compute_capability=gpu.compute_capability)
    return runs_on(passport.compute_capabilities, gpu)


def how_to_build_again(passport: Passport) -> str:
    """The command that builds an engine like this one from the graph as it is now."""
    return _build_command(passport, passport.targets)


def _build_command(passport: Passport, targets: tuple[str, ...]) -> str:
    words = ["deploykit", "build-trt", "--flavour", passport.flavour]
    if passport.flavour == "tensorrt_rtx":
        for target in targets:
            words += ("--target", target)
    words += ("--precision", passport.precision)
    default = Profile()
    for name in ("min_batch", "opt_batch", "max_batch"):
        batch = getattr(passport.profile, name)
        if batch != getattr(default, name):
            words += (f"--{name.replace('_', '-')}", str(batch))
    if passport.workspace_bytes is not None:
        words += ("--workspace", _binary(passport.workspace_bytes))
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
