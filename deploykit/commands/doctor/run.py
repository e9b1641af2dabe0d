"""Look at this machine: what it is, what is installed, and what each runtime would still need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deploykit.commands.doctor.extras import extras_findings
from deploykit.commands.doctor.findings import Ability, Finding, Machine, Task
from deploykit.commands.doctor.hardware import describe_machine, dotted, driver_finding
from deploykit.commands.doctor.openvino import openvino_finding
from deploykit.commands.doctor.packages import (
    cuda_bindings_finding,
    onnx_runtime_packages_finding,
    torch_finding,
)
from deploykit.commands.doctor.providers import cuda_of, import_onnx_runtime, provider_finding
from deploykit.commands.doctor.tensorrt import flavour_finding, installation
from deploykit.engine.targets import COMPUTE_CAPABILITIES
from deploykit.specs.engine import FLAVOURS
from deploykit.specs.value import Value
from deploykit.system.gpu import Gpu

#: By name, the findings that a task needs; those that were not looked for, because what they are
#: about is not there, are no obstacle of their own.
_NEEDS: tuple[tuple[str, Task, tuple[str, ...]], ...] = (
    ("onnxruntime-cpu", "run", ("onnxruntime",)),
    (
        *("onnxruntime-cuda", "run"),
        ("NVIDIA GPU", "driver for onnxruntime", "onnxruntime", "CUDA provider"),
    ),
    ("openvino", "run", ("openvino",)),
    (
        *("tensorrt", "run"),
        ("NVIDIA GPU", "driver for tensorrt", "tensorrt", "cuda-bindings"),
    ),
    (
        *("tensorrt", "build"),
        ("NVIDIA GPU", "driver for tensorrt", "tensorrt", "onnxruntime", "extra graph"),
    ),
    (
        *("tensorrt_rtx", "run"),
        (
            *("NVIDIA GPU", "driver for tensorrt_rtx", "GPU for tensorrt_rtx"),
            *("tensorrt_rtx", "cuda-bindings"),
        ),
    ),
    ("tensorrt_rtx", "build", ("tensorrt_rtx", "onnxruntime", "extra graph")),
    ("torch", "run", ("torch",)),
    ("rehearsal", "run", ("onnxruntime", "extra graph")),
)
_OLDEST_OF_RTX = (7, 5)


class Examination(Value, frozen=True):
    """What was found.

    Attributes:
        machine: What this machine is.
        abilities: What it can do with each runtime, and what is in the way.
        findings: All that was looked at, each with a name of its own.
    """

    machine: Machine
    abilities: tuple[Ability, ...]
    findings: tuple[Finding, ...]


def examine_machine() -> Examination:
    """Look at all that a runtime of deploykit may need; torch, onnx and TensorRT are not imported.

    Nothing that is missing or broken is an error here: it is what this looks for.
    """
    machine, hardware = describe_machine()
    found = {
        finding.name: finding
        for finding in (
            *hardware,
            onnx_runtime_packages_finding(),
            *_onnx_runtime_findings(machine.gpu),
            *_tensorrt_findings(machine.gpu),
            cuda_bindings_finding(machine.gpu),
            openvino_finding(),
            torch_finding(machine.gpu),
            *extras_findings(),
        )
    }
    return Examination(
        machine=machine,
        abilities=tuple(_abilities(found, machine.gpu)),
        findings=tuple(found.values()),
    )


def _onnx_runtime_findings(gpu: Gpu | None) -> Iterator[Finding]:
    onnx_runtime, importing = import_onnx_runtime()
    yield importing
    if onnx_runtime is None:
        return
    yield provider_finding("CUDA", onnx_runtime, gpu)
    yield provider_finding("TensorRT", onnx_runtime, gpu)
    if gpu is not None:
        yield driver_finding(gpu, cuda_of(onnx_runtime), "onnxruntime")


def _tensorrt_findings(gpu: Gpu | None) -> Iterator[Finding]:
    for flavour in FLAVOURS:
        yield flavour_finding(flavour)
        installed = installation(flavour)
        if gpu is not None and installed.packages:
            yield driver_finding(gpu, installed.cuda, flavour)
    if gpu is not None and gpu.compute_capability < _OLDEST_OF_RTX:
        yield Finding(
            name="GPU for tensorrt_rtx",
            status="broken",
            detail=f"{gpu.name} has compute capability {dotted(gpu.compute_capability)}; "
            f"TensorRT for RTX begins with {dotted(_OLDEST_OF_RTX)}",
            remedies=("use --runtime onnxruntime-cuda on this GPU",),
        )


def _abilities(found: Mapping[str, Finding], gpu: Gpu | None) -> Iterator[Ability]:
    for runtime, task, names in _NEEDS:
        gaps = (found[name] for name in names if name in found)
        obstacles = tuple(finding for finding in gaps if not finding.ok)
        note = "" if obstacles else _note(runtime, task, found, gpu)
        yield Ability(runtime=runtime, task=task, obstacles=obstacles, note=note)


def _note(runtime: str, task: Task, found: Mapping[str, Finding], gpu: Gpu | None) -> str:
    """What to know about something that works as far as can be seen."""
    packages = found["onnxruntime package"]
    if runtime.startswith("onnxruntime") and packages.status == "broken":
        return packages.detail
    if (runtime, task) == ("tensorrt_rtx", "run") and gpu is not None:
        if gpu.target not in COMPUTE_CAPABILITIES:
            return f"not built for {gpu.target}: only a portable engine may load, untested"
    elif task == "build" and runtime == "tensorrt_rtx":
        return "needs no GPU, but for --target current"
    elif runtime == "rehearsal":
        return "a model of FP16 hardware on the CPU"
    return ""
