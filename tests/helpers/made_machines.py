"""Machines made of files: packages with metadata, native libraries, a driver that answers."""

from __future__ import annotations

import ctypes
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import packaging.requirements  # noqa: F401 - before sys.path is a made machine's
import pytest
from elf_files import shared_library

from deploykit.commands.doctor import hardware as _doctor_hardware
from deploykit.commands.doctor import libraries as _doctor_libraries
from deploykit.commands.doctor.findings import Finding
from deploykit.commands.doctor.run import examine_machine
from deploykit.errors import DeviceError
from deploykit.system.gpu import Gpu

SYSTEM_LIBRARIES = ("libstdc++.so.6", "libc.so.6")
CUDA_LIBRARIES = ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13")
RTX_4070 = Gpu(name="NVIDIA GeForce RTX 4070", compute_capability=(8, 9), cuda_version=(13, 0))
DEPLOYKIT = (
    "onnxruntime-gpu>=1.22",
    "rich>=13.7; sys_platform != 'no-such-system'",
    "onnx>=1.20; extra == 'graph'",
    "deploykit[graph]; extra == 'timm'",
    "timm>=1.0; extra == 'timm'",
    "onnxruntime-gpu[cuda]>=1.22; extra == 'cuda'",
    "pytest>=8; extra == 'dev'",
)
EXTRAS = ("cuda", "dev", "graph", "timm")


class NvmlError(Exception):
    """What NVIDIA's management library raises."""


class MadeMachine:
    """A machine to look at: x86-64 Linux, without anything until it is installed.

    Attributes:
        site: Its ``site-packages``, the only one that counts.
        driver: The GPU, or why there is none.
    """

    def __init__(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site = site
        self.driver: Gpu | DeviceError = DeviceError("There is no NVIDIA driver.")
        self.driver.__cause__ = OSError("libcuda.so.1: cannot open shared object file")
        self._system_libraries = set(SYSTEM_LIBRARIES)
        self._monkeypatch = monkeypatch
        standard = [path for path in sys.path if path.endswith((".zip", "lib-dynload", "DLLs"))]
        self._set(sys, "path", [str(site), str(Path(platform.__file__).parent), *standard])
        self.become("linux", "x86_64")
        self._set(ctypes, "CDLL", self._load)
        self._set(_doctor_libraries, "DRIVER_LIBRARY", "libcuda.so.1")
        self._set(_doctor_hardware, "need_gpu", self._need_gpu)
        self._set(_doctor_hardware, "_memory_bytes", lambda: 32 * 2**30)
        self._set(_doctor_hardware, "usable_cpus", lambda: 16)
        for module in ("onnxruntime", "openvino", "pynvml", "cuda.bindings.runtime"):
            self.module(module, None)

    def become(self, system: str, processor: str) -> None:
        """Be another system: ``win32`` on ``AMD64``."""
        self._set(sys, "platform", system)
        self._set(platform, "machine", lambda: processor)

    def install(
        self, package: str, version: str, *requires: str, extras: tuple[str, ...] = ()
    ) -> None:
        """A package's metadata."""
        lines = ["Metadata-Version: 2.4", f"Name: {package}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in extras]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        self.file(f"{_record_of(package, version)}/METADATA", "\n".join(lines).encode())

    def uninstall(self, package: str, version: str) -> None:
        """Take a package's metadata away."""
        shutil.rmtree(self.site / _record_of(package, version))

    def file(self, name: str, content: bytes = b"") -> None:
        """A file in ``site-packages``."""
        path = self.site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def module(self, name: str, module: object) -> None:
        """What importing a module gives; None for nothing."""
        self._monkeypatch.setitem(sys.modules, name, module)

    def install_deploykit(self) -> None:
        """deploykit with its base requirements and the extra ``graph``."""
        self.install("deploykit", "0.1.0", *DEPLOYKIT, extras=EXTRAS)
        self.install("rich", "15.0.0")
        self.install("onnx", "1.23.2")

    def install_onnx_runtime(
        self, package: str = "onnxruntime-gpu", version: str = "1.31.1", *, cuda: bool = True
    ) -> None:
        """ONNX Runtime with the files of its GPU providers, and the module that it gives."""
        requires = [f"nvidia-{part}; extra == 'cuda'" for part in ("cuda-runtime", "curand")]
        self.install(package, version, *requires, extras=("cuda",))
        self.file("onnxruntime/__init__.py")
        providers = ["CPUExecutionProvider"]
        if cuda:
            providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", *providers]
            driver = ("libcuda.so.1",)
            tensorrt = ("libnvinfer.so.10", "libnvonnxparser.so.10", *CUDA_LIBRARIES[1:2])
            self.file(
                "onnxruntime/capi/libonnxruntime_providers_cuda.so",
                shared_library(*CUDA_LIBRARIES, *driver, *SYSTEM_LIBRARIES),
            )
            self.file(
                "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
                shared_library(*tensorrt, "libcudart.so.13", "libcudnn.so.9", *SYSTEM_LIBRARIES),
            )
        module = ModuleType("onnxruntime")
        module.__file__ = str(self.site / "onnxruntime" / "__init__.py")
        vars(module).update(
            __version__=version,
            InferenceSession=object,
            cuda_version="13.0" if cuda else "",
            get_available_providers=lambda: providers,
        )
        self.module("onnxruntime", module)

    def install_cuda_wheels(self) -> None:
        """What ``deploykit[cuda]`` brings."""
        self.install("nvidia-cuda-runtime", "13.2.86")
        self.install("nvidia-curand", "10.4.0")
        for name in CUDA_LIBRARIES:
            self.file(f"nvidia/cu13/lib/{name}")
        self.file("nvidia/cudnn/lib/libcudnn.so.9")

    def install_tensorrt(self, version: str = "11.4.0.106") -> None:
        """TensorRT with its libraries."""
        major = version.partition(".")[0]
        self._install_flavour("tensorrt", version, f"libnvinfer.so.{major}")

    def install_tensorrt_rtx(self, version: str = "1.7.1.116") -> None:
        """TensorRT for RTX with its libraries."""
        self._install_flavour("tensorrt_rtx", version, "libtensorrt_rtx.so.1")

    def install_cuda_bindings(self) -> None:
        """cuda-bindings, which import."""
        self.install("cuda-bindings", "13.5.0")
        self.module("cuda.bindings.runtime", ModuleType("cuda.bindings.runtime"))

    def install_openvino(self, *capabilities: str, version: str = "2026.4.1") -> None:
        """OpenVINO on a CPU that has these; without any, it does not start."""

        def ask(device: str, key: str) -> list[str]:
            if not capabilities:
                raise RuntimeError("no plugin for the device CPU")
            return [*capabilities]

        self.install("openvino", version)
        self.module("openvino", SimpleNamespace(Core=lambda: SimpleNamespace(get_property=ask)))

    def install_torch(self, build: str = "cu132", vision: str = "cu132") -> None:
        """torch and torchvision, which nothing imports."""
        for package, version, tag in (
            ("torch", "2.15.0", build),
            ("torchvision", "0.29.2", vision),
        ):
            self.install(package, version)
            self.file(f"{package}/__init__.py", b"raise RuntimeError('imported')")
            self.file(f"{package}/version.py", f"__version__ = '{version}+{tag}'\n".encode())

    def install_nvml(self, *gpus: tuple[str, int], failure: str = "") -> None:
        """nvidia-ml-py, before a driver with these GPUs' names and memories, or one that fails."""

        def start() -> None:
            if failure:
                raise NvmlError(failure)

        self.module(
            "pynvml",
            SimpleNamespace(
                NVMLError=NvmlError,
                nvmlInit=start,
                nvmlShutdown=lambda: None,
                nvmlSystemGetDriverVersion=lambda: "580.65.06",
                nvmlDeviceGetCount=lambda: len(gpus),
                nvmlDeviceGetHandleByIndex=lambda index: index,
                nvmlDeviceGetName=lambda handle: gpus[handle][0],
                nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=gpus[handle][1]),
            ),
        )

    def install_everything(self) -> None:
        """A GPU, its driver, and all that a runtime of deploykit needs."""
        self.driver = RTX_4070
        self.install_deploykit()
        self.install("timm", "1.0.31")
        self.install_onnx_runtime()
        self.install_cuda_wheels()
        self.install_tensorrt()
        self.install_tensorrt_rtx()
        self.install_cuda_bindings()
        self.install_openvino("FP32", "BF16", "INT8")
        self.install_torch()
        self.install_nvml((RTX_4070.name, 12 * 2**30))

    def add_system_libraries(self, *names: str) -> None:
        """Libraries that the system finds by their names."""
        self._system_libraries |= {*names}

    def _install_flavour(self, flavour: str, version: str, library: str) -> None:
        package = flavour.replace("_", "-")
        for part in ("", "-cu13", "-cu13-bindings", "-cu13-libs"):
            self.install(package + part, version)
        self.file(f"{flavour}/__init__.py", b"raise RuntimeError('imported')")
        self.file(f"{flavour}_bindings/{flavour}.so", shared_library(library, *SYSTEM_LIBRARIES))
        self.file(f"{flavour}_libs/{library}")

    def _set(self, target: object, name: str, value: object) -> None:
        self._monkeypatch.setattr(target, name, value)

    def _load(self, name: str, **_: object) -> None:
        """Load what is there, as ``ctypes.CDLL`` does; a file that says "damaged" is."""
        path = Path(name)
        if path.is_file() and b"damaged" in path.read_bytes():
            raise OSError(f"{name}: invalid ELF header")
        if not path.is_file() and name not in self._system_libraries:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    def _need_gpu(self) -> Gpu:
        if isinstance(self.driver, DeviceError):
            raise self.driver
        return self.driver


def found() -> dict[str, Finding]:
    """The findings, by name."""
    return {finding.name: finding for finding in examine_machine().findings}


def working() -> set[tuple[str, str]]:
    """The runtimes and tasks that work."""
    abilities = examine_machine().abilities
    return {(ability.runtime, ability.task) for ability in abilities if ability.works}


def obstacles(runtime: str, task: str = "run") -> dict[str, Finding]:
    """What is in the way of a runtime, by name."""
    (ability,) = (
        ability
        for ability in examine_machine().abilities
        if (ability.runtime, ability.task) == (runtime, task)
    )
    return {finding.name: finding for finding in ability.obstacles}


def _record_of(package: str, version: str) -> str:
    return f"{package.replace('-', '_')}-{version}.dist-info"
