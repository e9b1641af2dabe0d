"""Machines of every kind, looked at; what they are made of is in ``made_machines.py``."""

import dataclasses
import sys
from types import ModuleType

import pytest
from elf_files import shared_library
from made_machines import RTX_4070, MadeMachine, found, obstacles, working

from deploykit.commands.doctor import run as doctor
from deploykit.errors import DeviceError
from deploykit.system import cpu

ALL = {
    *{("onnxruntime-cpu", "run"), ("onnxruntime-cuda", "run"), ("torch", "run")},
    *{("tensorrt", "run"), ("tensorrt", "build"), ("rehearsal", "run")},
    *{("tensorrt_rtx", "run"), ("tensorrt_rtx", "build"), ("openvino", "run")},
}
#: Where nothing can be done about them: no driver answers, or no provider is published.
NOT_FOR_EVERY_SYSTEM = ("nvidia-ml-py", "CUDA provider", "TensorRT provider")
KEEP_THE_GPU_PACKAGE = "pip install --force-reinstall --no-deps onnxruntime-gpu"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return MadeMachine(tmp_path / "site-packages", monkeypatch)


def test_a_gpu_with_everything(machine):
    machine.install_everything()
    examination = doctor.examine_machine()
    assert {(ability.runtime, ability.task) for ability in examination.abilities} == ALL
    assert working() == ALL
    assert examination.machine.gpu == RTX_4070
    assert examination.machine.driver_version == "580.65.06"
    assert examination.machine.gpu_memory_bytes == 12 * 2**30
    assert [finding.name for finding in examination.findings if not finding.ok] == [
        "TensorRT provider"
    ]


def test_no_gpu(machine):
    machine.install_everything()
    machine.driver = DeviceError("There is no NVIDIA driver.")
    machine.driver.__cause__ = OSError()
    assert working() == {
        *{("onnxruntime-cpu", "run"), ("torch", "run"), ("rehearsal", "run")},
        *{("tensorrt_rtx", "build"), ("openvino", "run")},
    }
    assert list(obstacles("tensorrt_rtx")) == ["NVIDIA GPU"]
    gpu = found()["NVIDIA GPU"]
    assert gpu.status == "absent-but-fine"
    assert "its driver, from nvidia.com" in gpu.remedies[0]


def test_an_empty_machine(machine):
    assert working() == set()
    findings = found()
    assert findings["onnxruntime package"].remedies == (KEEP_THE_GPU_PACKAGE,)
    assert findings["onnxruntime"].status == "broken"
    assert findings["tensorrt_rtx"].remedies == ('pip install "deploykit[rtx]"',)
    assert "CUDA provider" not in findings


def test_both_packages_of_onnx_runtime(machine):
    machine.install_everything()
    machine.install_onnx_runtime("onnxruntime", "1.30.0", cuda=False)
    assert obstacles("onnxruntime-cpu") == {}
    lost = obstacles("onnxruntime-cuda")["CUDA provider"]
    assert lost.status == "missing"
    assert "the installed ONNX Runtime 1.30.0 has none" in lost.detail
    packages = found()["onnxruntime package"]
    assert packages.status == "broken"
    assert "onnxruntime 1.30.0, onnxruntime-gpu 1.31.1" in packages.detail
    assert packages.remedies == ("pip uninstall -y onnxruntime", KEEP_THE_GPU_PACKAGE)
    assert lost.remedies == (*packages.remedies, 'pip install "deploykit[cuda]"')
    (cpu, *_) = doctor.examine_machine().abilities
    assert "overwritten each other's files" in cpu.note


def test_the_package_without_cuda_alone(machine):
    machine.driver = RTX_4070
    machine.install_deploykit()
    machine.install_onnx_runtime("onnxruntime", cuda=False)
    findings = found()
    assert "asks for onnxruntime-gpu" in findings["onnxruntime package"].detail
    assert findings["deploykit"].detail == "lacks onnxruntime-gpu"
    assert findings["deploykit"].remedies == (
        *("pip uninstall -y onnxruntime", KEEP_THE_GPU_PACKAGE),
        "pip install deploykit",
    )


def test_a_system_without_a_package_for_gpus(machine):
    machine.become("linux", "aarch64")
    machine.install_onnx_runtime("onnxruntime", cuda=False)
    findings = found()
    assert findings["onnxruntime package"].ok
    assert "none is published for" in findings["CUDA provider"].detail
    assert findings["CUDA provider"].remedies == ()


def test_tensorrt_11_does_not_help_onnx_runtime(machine):
    machine.install_everything()
    provider = found()["TensorRT provider"]
    assert provider.status == "absent-but-fine"
    assert "libnvinfer.so.10, libnvonnxparser.so.10 not found" in provider.detail
    assert "pip install tensorrt gives libnvinfer.so.11" in provider.detail
    assert provider.remedies == ('pip install "tensorrt-cu13<11"',)


def test_tensorrt_10_does(machine):
    machine.install_everything()
    for name in ("libnvinfer.so.10", "libnvonnxparser.so.10"):
        machine.file(f"tensorrt_libs/{name}")
    provider = found()["TensorRT provider"]
    assert provider.ok
    assert "CUDA 13" in provider.detail


def test_a_missing_cuda_library(machine):
    machine.install_everything()
    (machine.site / "nvidia/cu13/lib/libcurand.so.10").unlink()
    assert working() == ALL - {("onnxruntime-cuda", "run")}
    provider = obstacles("onnxruntime-cuda")["CUDA provider"]
    assert provider.status == "missing"
    assert provider.detail == "libcurand.so.10 not found"
    assert provider.remedies == ('pip install "deploykit[cuda]"',)


def test_a_cuda_library_of_the_system(machine):
    machine.install_everything()
    (machine.site / "nvidia/cu13/lib/libcurand.so.10").unlink()
    machine.add_system_libraries("libcurand.so.10")
    assert working() == ALL


def test_cudnn_is_needed_although_the_provider_does_not_link_it(machine):
    machine.install_everything()
    (machine.site / "nvidia/cudnn/lib/libcudnn.so.9").unlink()
    assert obstacles("onnxruntime-cuda")["CUDA provider"].detail == "libcudnn.so.9 not found"


def test_a_library_that_does_not_load(machine):
    machine.install_everything()
    machine.file("nvidia/cudnn/lib/libcudnn.so.9", b"damaged")
    detail = obstacles("onnxruntime-cuda")["CUDA provider"].detail
    assert detail.startswith("libcudnn.so.9 does not load: ")
    assert detail.endswith("invalid ELF header")


def test_a_library_of_the_system_that_is_not_there(machine):
    machine.install_everything()
    machine.file(
        "onnxruntime/capi/libonnxruntime_providers_cuda.so", shared_library("libgomp.so.1")
    )
    (remedy,) = obstacles("onnxruntime-cuda")["CUDA provider"].remedies
    assert "from the system's packages" in remedy


def test_a_damaged_provider(machine):
    machine.install_everything()
    machine.file("onnxruntime/capi/libonnxruntime_providers_cuda.so", b"damaged")
    provider = obstacles("onnxruntime-cuda")["CUDA provider"]
    assert provider.status == "broken"
    assert "libonnxruntime_providers_cuda.so is not a shared library" in provider.detail
    assert provider.remedies == (KEEP_THE_GPU_PACKAGE,)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (None, "onnxruntime is not installed"),
        (ModuleType("onnxruntime"), "most of its files are gone"),
    ],
)
def test_an_onnx_runtime_that_is_not_whole(machine, module, why):
    machine.install_everything()
    machine.module("onnxruntime", module)
    assert working() == {
        *{("tensorrt", "run"), ("tensorrt_rtx", "run"), ("torch", "run")},
        ("openvino", "run"),
    }
    assert why in obstacles("onnxruntime-cpu")["onnxruntime"].detail


def test_an_onnx_runtime_that_raises_what_it_likes(machine, monkeypatch):
    machine.install_everything()
    monkeypatch.delitem(sys.modules, "onnxruntime")
    machine.file("onnxruntime/__init__.py", b"raise AttributeError('_ARRAY_API')")
    detail = obstacles("onnxruntime-cpu")["onnxruntime"].detail
    assert detail.endswith("does not import: AttributeError: _ARRAY_API")


def test_an_old_driver(machine):
    machine.install_everything()
    machine.driver = dataclasses.replace(RTX_4070, cuda_version=(12, 4))
    assert ("tensorrt_rtx", "build") in working()
    assert list(obstacles("onnxruntime-cuda")) == ["driver for onnxruntime"]
    assert list(obstacles("tensorrt")) == ["driver for tensorrt"]
    driver = obstacles("tensorrt_rtx")["driver for tensorrt_rtx"]
    assert driver.status == "broken"
    assert "CUDA up to 12.4, and tensorrt_rtx is built for CUDA 13" in driver.detail
    assert "newer driver" in driver.remedies[0]
    assert "it computes on the CPU" in found()["torch"].detail


@pytest.mark.parametrize(
    ("hidden", "remedy"),
    [(None, "see whether nvidia-smi runs"), ("", "unset CUDA_VISIBLE_DEVICES, which is ''")],
)
def test_a_driver_that_does_not_start(machine, monkeypatch, hidden, remedy):
    machine.install_everything()
    machine.driver = DeviceError("The NVIDIA driver does not start: cuInit gives error 100.")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    gpu = obstacles("tensorrt_rtx")["NVIDIA GPU"]
    assert gpu.status == "broken"
    assert "error 100" in gpu.detail
    assert gpu.remedies[0].startswith(remedy)


@pytest.mark.parametrize(
    ("compute_capability", "note"), [((8, 9), ""), ((9, 0), "not built for sm90")]
)
def test_a_gpu_that_is_no_target_of_tensorrt_for_rtx(machine, compute_capability, note):
    machine.install_everything()
    machine.driver = dataclasses.replace(RTX_4070, compute_capability=compute_capability)
    abilities = doctor.examine_machine().abilities
    (run,) = (a for a in abilities if (a.runtime, a.task) == ("tensorrt_rtx", "run"))
    assert run.works
    assert run.note.startswith(note)
    assert bool(run.note) == bool(note)


def test_a_gpu_too_old_for_tensorrt_for_rtx(machine):
    machine.install_everything()
    machine.driver = dataclasses.replace(RTX_4070, compute_capability=(7, 0))
    assert working() == ALL - {("tensorrt_rtx", "run")}
    assert "begins with 7.5" in obstacles("tensorrt_rtx")["GPU for tensorrt_rtx"].detail


def test_without_nvml_all_but_two_facts_are_there(machine):
    machine.install_everything()
    machine.module("pynvml", None)
    examination = doctor.examine_machine()
    assert working() == ALL
    assert examination.machine.gpu == RTX_4070
    assert examination.machine.driver_version is None
    assert found()["nvidia-ml-py"].status == "absent-but-fine"
    assert found()["nvidia-ml-py"].remedies == ("pip install nvidia-ml-py",)


def test_nvml_that_fails(machine):
    machine.install_everything()
    machine.install_nvml(failure="Driver/library version mismatch")
    assert working() == ALL
    assert found()["nvidia-ml-py"].status == "broken"
    assert "version mismatch" in found()["nvidia-ml-py"].detail


def test_the_memory_is_that_of_the_gpu_that_is_used(machine):
    machine.install_everything()
    machine.install_nvml(("NVIDIA T400", 2 * 2**30), (RTX_4070.name, 12 * 2**30))
    assert doctor.examine_machine().machine.gpu_memory_bytes == 12 * 2**30


def test_windows(machine):
    machine.install_everything()
    machine.become("win32", "AMD64")
    machine.file("tensorrt_rtx_bindings/tensorrt_rtx.pyd")
    (machine.site / "tensorrt_rtx_bindings/tensorrt_rtx.so").unlink()
    machine.file("tensorrt_rtx_libs/tensorrt_rtx_1_7.dll")
    machine.file("tensorrt_rtx_libs/tensorrt_onnxparser_rtx_1_7.dll")
    for provider in ("cuda", "tensorrt"):
        machine.file(f"onnxruntime/capi/onnxruntime_providers_{provider}.dll")
    for name in ("cublasLt64_13", "cublas64_13", "cufft64_12", "cudart64_13"):
        machine.file(f"nvidia/cu13/bin/x86_64/{name}.dll")
    findings = found()
    assert findings["tensorrt_rtx"].ok
    assert findings["CUDA provider"].detail == "cudnn64_9.dll not found"
    assert findings["TensorRT provider"].detail.startswith(
        "cudnn64_9.dll, nvinfer_10.dll, nvonnxparser_10.dll not found; TensorRT 11.4.0.106 is "
        "installed: pip install tensorrt gives nvinfer_11.dll"
    )
    machine.file("nvidia/cudnn/bin/cudnn64_9.dll")
    assert found()["CUDA provider"].ok
    (machine.site / "tensorrt_rtx_libs/tensorrt_rtx_1_7.dll").unlink()
    assert "tensorrt_rtx_1_7.dll not found" in found()["tensorrt_rtx"].detail


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "instruction_sets"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx2 amx_int8 avx512f\n", "AMD EPYC", 3),
        ("processor\t: 0\nFeatures\t: fp asimddp i8mm\n", "", 2),
        ("", "", None),
        (None, "", None),
    ],
    ids=["x86", "ARM", "empty", "not Linux"],
)
def test_the_cpu(machine, tmp_path, monkeypatch, cpuinfo, processor, instruction_sets):
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    seen = doctor.examine_machine().machine
    assert processor in seen.processor
    assert seen.processor
    if instruction_sets is None:
        assert seen.instruction_sets is None
    else:
        assert len(seen.instruction_sets) == instruction_sets


def test_this_machine():
    examination = doctor.examine_machine()
    abilities = {(each.runtime, each.task): each for each in examination.abilities}
    assert set(abilities) == ALL
    assert abilities["onnxruntime-cpu", "run"].works
    assert examination.machine.cores >= 1
    assert examination.machine.memory_bytes > 2**28
    for finding in examination.findings:
        assert finding.detail
        assert finding.ok or finding.remedies or finding.name in NOT_FOR_EVERY_SYSTEM
