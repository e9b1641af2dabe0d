"""Look at this machine: let each runtime do its smallest real thing, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from deploykit.errors import DeviceError
from deploykit.specs.value import Value
from deploykit.system.cpu import describe_cpu
from deploykit.system.deps import EXTRAS, installed_versions
from deploykit.system.gpu import EXPERIMENTAL, Gpu, need_gpu
from deploykit.system.progress import Progress, Step, silent
from deploykit.system.threads import in_order, usable_cpus

Status: TypeAlias = Literal["works", "broken", "not installed", "no GPU"]
#: The packages that bring a module, by its name.
_Packages: TypeAlias = Mapping[str, list[str]]

#: The exit code of a probe of which the CPU computed instead of the GPU.
FELL_BACK = 4
#: Importing torch for the first time after a start takes half a minute on a slow disk.
TIMEOUT_S = 120.0
_LONGEST_LINE = 500
_NEWER_DRIVER = "Install a newer NVIDIA driver: https://www.nvidia.com/drivers"
#: How CUDA, TensorRT and torch say that the driver is too old for them.
_OLD_DRIVER = re.compile(r"driver version is insufficient|driver .*too old|with error: 35\b")


class Finding(Value, frozen=True):
    """One thing that was tried.

    Attributes:
        name: ``NVIDIA GPU``, a runtime as ``--runtime`` takes it, ``extra graph``.
        status: ``not installed`` is said of optional packages only; ``no GPU`` of what needs one.
        detail: Its version, or why it does not work in the library's own words.
        remedy: The command that mends it (one a line), an instruction where no command does, or "".
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


class Machine(Value, frozen=True):
    """What this machine is.

    Attributes:
        system: The operating system with its version.
        executable: The Python program, which tells the environment.
        cpu: The CPU's name.
        cores: How many logical cores this process may use.
        instruction_sets: Those that decide how fast FP32, BF16 and INT8 are; None if unknown.
        memory_bytes: All of the machine's memory.
        gpu: GPU 0; None if there is none to use.
        nvidia_smi: Name, driver version and memory of each GPU, as ``nvidia-smi`` prints them.
    """

    system: str
    executable: str
    cpu: str
    cores: int
    instruction_sets: tuple[str, ...] | None
    memory_bytes: int
    gpu: Gpu | None
    nvidia_smi: tuple[str, ...]


class Examination(Value, frozen=True):
    """What was found.

    Attributes:
        machine: What this machine is.
        versions: Of Python and of the packages whose version can change an answer.
        findings: All that was tried.
    """

    machine: Machine
    versions: dict[str, str]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Check:
    """A probe, and what to do about its result.

    Attributes:
        name: Of the finding.
        probe: The arguments of ``probes.py``.
        modules: What must be installed for it.
        needs_gpu: Whether it is skipped without an NVIDIA GPU.
        remedy: What mends it; "" to install the packages of the modules again.
    """

    name: str
    probe: tuple[str, ...]
    modules: tuple[str, ...]
    needs_gpu: bool = False
    remedy: str = ""

    @property
    def install(self) -> str:
        """The command that installs the modules with all that they need."""
        extra = EXTRAS.get(self.modules[0])
        return f'pip install "deploykit[{extra}]"' if extra else "pip install deploykit"


_ORT, _TORCH = ("onnxruntime",), ("torch", "torchvision", "safetensors")
_TENSORRT = ("tensorrt", "tensorrt_bindings", "tensorrt_libs")
_RTX = ("tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs")
_WITH_A_PROBE = {"openvino", "tensorrt", "rtx", "export"}
#: In the order in which they are shown.
CHECKS = (
    Check("onnxruntime-cpu", ("onnxruntime", "CPUExecutionProvider"), _ORT),
    Check(
        *("onnxruntime-cuda", ("onnxruntime", "CUDAExecutionProvider"), _ORT),
        needs_gpu=True,
        remedy='pip install "deploykit[cuda]"',
    ),
    Check("openvino", ("openvino",), ("openvino",)),
    Check("tensorrt", ("tensorrt", "tensorrt", "run"), _TENSORRT, needs_gpu=True),
    Check("tensorrt_rtx", ("tensorrt", "tensorrt_rtx", "run"), _RTX, needs_gpu=True),
    Check("tensorrt_rtx, build only", ("tensorrt", "tensorrt_rtx", "build"), _RTX),
    Check(
        *("torch", ("torch", "cpu"), _TORCH),
        remedy="pip install --force-reinstall torch torchvision",
    ),
    Check(
        *("torch on CUDA", ("torch", "cuda"), _TORCH),
        needs_gpu=True,
        remedy="Install torch for your CUDA: https://pytorch.org/get-started/locally",
    ),
    *(
        Check(f"extra {extra}", ("import", *modules), modules)
        for extra in sorted({*EXTRAS.values()} - _WITH_A_PROBE)
        for modules in [tuple(module for module, each in EXTRAS.items() if each == extra)]
    ),
)


def examine_machine(progress: Progress = silent) -> Examination:
    """Try each runtime; this process itself loads none of them.

    Nothing that is missing or broken is an error here: it is what this looks for.

    Args:
        progress: Called after each check.
    """
    import psutil

    gpu, gpu_finding = _find_gpu()
    packages = importlib.metadata.packages_distributions()
    findings = [gpu_finding, *_package_findings(packages)]
    tried = in_order(
        lambda check: _try(check, gpu, packages),
        CHECKS,
        threads=usable_cpus(),
        ahead=len(CHECKS),
        name="doctor",
    )
    for done, finding in enumerate(tried, 1):
        findings.append(finding)
        progress(Step("trying the runtimes", done, len(CHECKS)))
    cpu = describe_cpu()
    machine = Machine(
        system=platform.platform(),
        executable=sys.executable,
        cpu=cpu.name,
        cores=usable_cpus(),
        instruction_sets=cpu.instruction_sets,
        memory_bytes=psutil.virtual_memory().total,
        gpu=gpu,
        nvidia_smi=_nvidia_smi() if gpu else (),
    )
    return Examination(machine=machine, versions=installed_versions(), findings=tuple(findings))


def _nvidia_smi() -> tuple[str, ...]:
    """A line for each GPU, from the tool that comes with every driver; () if it does not run."""
    query = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", *query]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
        return tuple(done.stdout.splitlines())
    return ()


def _find_gpu() -> tuple[Gpu | None, Finding]:
    """GPU 0. A machine without a driver has no GPU; a driver that does not start is broken."""
    name = "NVIDIA GPU"
    try:
        gpu = need_gpu()
    except DeviceError as exc:
        status: Status = "no GPU" if isinstance(exc.__cause__, OSError) else "broken"
        remedy = (exc.hint or "").partition("; or see what ")[0]
        return None, Finding(name=name, status=status, detail=exc.message, remedy=remedy)
    return gpu, Finding(name=name, status="works", detail=f"{gpu.name}; {EXPERIMENTAL}")


def _try(check: Check, gpu: Gpu | None, packages: _Packages) -> Finding:
    """Run a check's probe in a process of its own."""
    if check.needs_gpu and gpu is None:
        return Finding(
            name=check.name, status="no GPU", detail=f"needs an NVIDIA GPU; {EXPERIMENTAL}"
        )
    if not _is_installed(check.modules[0]):
        status: Status = "not installed" if check.modules[0] in EXTRAS else "broken"
        detail = f"No module named {check.modules[0]!r}"
        return Finding(name=check.name, status=status, detail=detail, remedy=check.install)
    works, detail = _run_probe(check.probe)
    if works:
        return Finding(name=check.name, status="works", detail=detail)
    remedy = _remedy_for(check, detail, packages)
    return Finding(name=check.name, status="broken", detail=detail, remedy=remedy)


def _run_probe(arguments: tuple[str, ...]) -> tuple[bool, str]:
    """Whether a probe succeeds, and what it found or why it fails."""
    # -P, so that the current folder's torch.py is not taken for torch.
    command = [sys.executable, "-P", "-m", "deploykit.commands.doctor.probes", *arguments]
    # The probe sees the packages that this process sees.
    path = os.pathsep.join(each for each in sys.path if each)
    # Without a folder of ours, matplotlib makes one in the user's home.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = {"PYTHONPATH": path, "PYTHONUTF8": "1", "MPLCONFIGDIR": folder}
        try:
            done = subprocess.run(  # noqa: S603  # ours
                command,
                env=os.environ | settings,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False, f"no answer within {TIMEOUT_S:g} seconds"
    if done.returncode == 0:
        return True, _last_line(done.stdout)
    error = _last_line(done.stderr)
    if done.returncode == 1:
        return False, error
    if done.returncode == FELL_BACK:
        what = "computed on the CPU, although CUDA was asked for"
    else:
        what = f"crashed ({_signal_name(done.returncode)})"
    return False, f"{what}: {error}" if error else what


def _last_line(output: bytes) -> str:
    """The last line, without colours and the beginning that ONNX Runtime gives each of its own."""
    lines = re.sub(r"\x1b\[[\d;]*m", "", output.decode(errors="replace")).split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.rpartition("[ONNXRuntimeError] : ")[2][:_LONGEST_LINE]


def _signal_name(code: int) -> str:
    """``SIGSEGV``, or Windows' number for what ended a process, ``0xc0000005``."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"{code & 0xFFFFFFFF:#x}"


def _remedy_for(check: Check, detail: str, packages: _Packages) -> str:
    if "No module named" in detail:
        return check.install
    if _OLD_DRIVER.search(detail):
        return _NEWER_DRIVER
    if check.modules == _ORT:
        installed = _packages_of(_ORT, packages)
        if not check.needs_gpu or len(installed) > 1 or "built without CUDA" in detail:
            return _one_onnx_runtime(installed)
    return check.remedy or _reinstall(*_packages_of(check.modules, packages))


def _package_findings(packages: _Packages) -> Iterator[Finding]:
    """Packages that exclude each other, and versions that deploykit does not work with."""
    installed = _packages_of(_ORT, packages)
    if len(installed) > 1:
        yield Finding(
            name="onnxruntime packages",
            status="broken",
            detail=f"{' and '.join(installed)} are installed together: they overwrite each other",
            remedy=_one_onnx_runtime(installed),
        )
    unmet = dict(_unmet_requirements())
    if unmet:
        yield Finding(
            name="requirements",
            status="broken",
            detail=", ".join(unmet.values()),
            remedy=f"pip install {' '.join(unmet)}",
        )


def _unmet_requirements() -> Iterator[tuple[str, str]]:
    """Requirements as pip takes them and what is there, if that is too old, too new or nothing.

    What an extra requires may be missing, and so may a package of ONNX Runtime, of which there are
    several.
    """
    from packaging.requirements import Requirement

    try:
        distribution = importlib.metadata.distribution("deploykit")
    except importlib.metadata.PackageNotFoundError:
        yield "deploykit", "deploykit is not installed, so what it requires is unknown"
        return
    extras = distribution.metadata.get_all("Provides-Extra") or []
    for requirement in map(Requirement, distribution.requires or ()):
        marker = requirement.marker
        is_required = marker is None or marker.evaluate({"extra": ""})
        if marker and not any(marker.evaluate({"extra": each}) for each in ("", *extras)):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if is_required and not requirement.name.startswith("onnxruntime"):
                yield f'"{requirement}"', f"{requirement.name} is not installed"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            yield f'"{wanted}"', f"{requirement.name} {version}, but {wanted} is needed"


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # a folder of that name has no origin


def _packages_of(modules: tuple[str, ...], packages: _Packages) -> list[str]:
    return sorted({name for module in modules for name in packages.get(module, ()) if name})


def _one_onnx_runtime(installed: list[str]) -> str:
    """The commands that leave the one package of ONNX Runtime that deploykit requires here."""
    here = (sys.platform, platform.machine())
    has_gpu_package = here in (("linux", "x86_64"), ("win32", "AMD64"))
    wanted = "onnxruntime-gpu" if has_gpu_package else "onnxruntime"
    unwanted = [name for name in installed if name != wanted]
    uninstall = [f"pip uninstall -y {' '.join(unwanted)}"] if unwanted else []
    return "\n".join([*uninstall, _reinstall(wanted)])


def _reinstall(*packages: str) -> str:
    """The command that writes packages again, without numpy, torch and all else they need."""
    return f"pip install --force-reinstall --no-deps {' '.join(packages)}"
