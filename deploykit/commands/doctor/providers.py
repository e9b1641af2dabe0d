"""What each provider of ONNX Runtime needs, and whether it is there.

ONNX Runtime lists a provider that it was built with, wherever it runs and whatever is installed.
So the libraries that the provider's own file links are tried one by one.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeAlias

from deploykit.commands.doctor.findings import Finding, Status
from deploykit.commands.doctor.libraries import (
    CUDA_EXTRA,
    cuda_version,
    describe,
    major_version,
    needed_by,
    remedies_for,
    unloadable,
)
from deploykit.commands.doctor.packages import (
    has_gpu_package,
    imported,
    one_onnx_runtime,
    version_of,
)
from deploykit.errors import DependencyError, InputError
from deploykit.system.gpu import Gpu

Provider: TypeAlias = Literal["CUDA", "TensorRT"]

_REGISTERED_NAMES = {"CUDA": "CUDAExecutionProvider", "TensorRT": "TensorrtExecutionProvider"}
#: ONNX Runtime 1.31's CUDA provider links no cuDNN: it opens it at the first convolution.
_CUDNN = "libcudnn.so.9"


def import_onnx_runtime() -> tuple[ModuleType | None, Finding]:
    """ONNX Runtime if it imports, and what importing it showed."""
    try:
        module = imported("onnxruntime")
    except DependencyError as exc:
        return None, _broken("onnxruntime", exc.message)
    if not hasattr(module, "InferenceSession"):
        # What is left of it when one of two packages that share its files was uninstalled.
        return None, _broken("onnxruntime", "it imports, but most of its files are gone")
    detail = f"{module.__version__}, its CPU provider needs nothing else"
    return module, Finding(name="onnxruntime", status="ok", detail=detail)


def provider_finding(provider: Provider, onnx_runtime: ModuleType, gpu: Gpu | None) -> Finding:
    """Whether a GPU provider's file is there, and all libraries that it needs.

    Args:
        provider: Which one.
        onnx_runtime: The module.
        gpu: The GPU that it would run on; without one its gaps do no harm, as those of the
            TensorRT provider never do: deploykit makes and runs engines without it.
    """
    name = f"{provider} provider"
    status: Status = "missing" if provider == "CUDA" and gpu is not None else "absent-but-fine"
    file = _file_of(provider, onnx_runtime)
    if (
        not file.is_file()
        or _REGISTERED_NAMES[provider] not in onnx_runtime.get_available_providers()
    ):
        detail = f"the installed ONNX Runtime {onnx_runtime.__version__} has none"
        if has_gpu_package():
            remedies = (*one_onnx_runtime(), CUDA_EXTRA)
            return Finding(name=name, status=status, detail=detail, remedies=remedies)
        detail += f"; none is published for {platform.system()} on {platform.machine()}"
        return Finding(name=name, status=status, detail=detail)
    try:
        needed = needed_by(file, _windows_names(provider, cuda_of(onnx_runtime)))
    except InputError as exc:
        return _broken(name, exc.message)
    if provider == "CUDA" and file.suffix == ".so":
        needed = tuple(dict.fromkeys((*needed, _CUDNN)))
    problems = unloadable(needed, packages=file.parents[2])
    if problems:
        return Finding(
            name=name,
            status=status,
            detail="; ".join((describe(problems), *_explanations(problems))),
            remedies=remedies_for(problems, cuda_version(needed)),
        )
    detail = f"for CUDA {cuda_version(needed)}; the {len(needed)} libraries that it needs load"
    return Finding(name=name, status="ok", detail=detail)


def cuda_of(onnx_runtime: ModuleType) -> int | None:
    """The major version of CUDA that ONNX Runtime is built for; None for a build without CUDA."""
    version = str(getattr(onnx_runtime, "cuda_version", None) or "")
    return int(version.partition(".")[0]) if version[:1].isdigit() else None


def _broken(name: str, detail: str) -> Finding:
    return Finding(name=name, status="broken", detail=detail, remedies=one_onnx_runtime())


def _file_of(provider: Provider, onnx_runtime: ModuleType) -> Path:
    stem = f"onnxruntime_providers_{provider.lower()}"
    file_name = f"{stem}.dll" if sys.platform == "win32" else f"lib{stem}.so"
    return Path(str(onnx_runtime.__file__)).parent / "capi" / file_name


def _windows_names(provider: Provider, cuda: int | None) -> tuple[str, ...]:
    """What a provider needs on Windows, in an order in which each finds what it needs itself."""
    cufft = 12 if cuda is not None and cuda >= 13 else 11
    names = (f"cublasLt64_{cuda}.dll", f"cublas64_{cuda}.dll", f"cudart64_{cuda}.dll")
    if provider == "CUDA":
        return (*names, f"cufft64_{cufft}.dll", "cudnn64_9.dll")
    return (*names, "cudnn64_9.dll", "nvinfer_10.dll", "nvonnxparser_10.dll")


def _explanations(missing: Iterable[str]) -> Iterator[str]:
    """Why a TensorRT that is installed does not help ONNX Runtime."""
    wanted = next((name for name in missing if "nvinfer" in name), None)
    if wanted is None:
        return
    version = str(major_version(wanted))
    installed = version_of("tensorrt") or version_of("tensorrt-cu13") or version_of("tensorrt-cu12")
    if installed and not installed.startswith(f"{version}."):
        other = wanted.replace(version, installed.partition(".")[0])
        yield f"TensorRT {installed} is installed: pip install tensorrt gives {other}"
    yield "deploykit's engines do without it"
