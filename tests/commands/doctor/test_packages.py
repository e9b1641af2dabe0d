"""Packages of every kind, installed on made machines, and what doctor says of each."""

import pytest
from made_machines import MadeMachine, found, obstacles, working


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return MadeMachine(tmp_path / "site-packages", monkeypatch)


@pytest.mark.parametrize(
    "metadata", [b"", b"Name: onnx\n", b"Name: onnx\nVersion: \xff\xfe\n", None]
)
def test_metadata_that_tells_nothing(machine, metadata):
    machine.install_everything()
    file = machine.site / "onnx-1.23.2.dist-info/METADATA"
    file.unlink()
    if metadata is not None:
        file.write_bytes(metadata)
    graph = found()["extra graph"]
    assert graph.status == "broken"
    assert "onnx unreadable metadata" in graph.detail
    assert graph.remedies[0] == "pip install --ignore-installed --no-deps onnx"


def test_extras(machine):
    machine.install_everything()
    machine.uninstall("timm", "1.0.31")
    machine.install("onnx", "1.19.0")
    machine.uninstall("onnx", "1.23.2")
    machine.uninstall("nvidia-curand", "10.4.0")
    extras = {name: each for name, each in found().items() if name.startswith("extra ")}
    assert set(extras) == {"extra cuda", "extra graph", "extra timm"}
    assert extras["extra cuda"].status == "absent-but-fine"
    assert extras["extra cuda"].detail == "lacks nvidia-curand"
    assert extras["extra graph"].status == "broken"
    assert extras["extra graph"].detail == "has onnx 1.19.0, needs >=1.20"
    assert extras["extra timm"].detail == "has onnx 1.19.0, needs >=1.20, lacks timm"
    assert extras["extra timm"].remedies == ('pip install "deploykit[timm]"',)
    assert ("rehearsal", "run") not in working()
    assert ("tensorrt_rtx", "build") not in working()


def test_what_deploykit_itself_lacks(machine):
    machine.install_everything()
    machine.uninstall("rich", "15.0.0")
    findings = found()
    assert findings["deploykit"].status == "missing"
    assert findings["deploykit"].detail == "lacks rich"
    assert findings["extra graph"].ok


def test_deploykit_without_metadata(machine):
    machine.install_everything()
    machine.uninstall("deploykit", "0.1.0")
    assert "cannot be told" in obstacles("rehearsal")["extra graph"].detail


def test_cuda_bindings_that_are_missing(machine):
    machine.install_everything()
    machine.uninstall("cuda-bindings", "13.5.0")
    bindings = obstacles("tensorrt")["cuda-bindings"]
    assert bindings.status == "missing"
    assert bindings.remedies == ('pip install "cuda-bindings>=12.9.1"',)


def test_cuda_bindings_that_do_not_import(machine):
    machine.install_everything()
    machine.module("cuda.bindings.runtime", None)
    bindings = obstacles("tensorrt")["cuda-bindings"]
    assert bindings.status == "broken"
    assert bindings.remedies == ("pip install --force-reinstall --no-deps cuda-bindings",)


def test_tensorrt_without_its_libraries(machine):
    machine.install_everything()
    (machine.site / "tensorrt_libs/libnvinfer.so.11").unlink()
    tensorrt = obstacles("tensorrt", "build")["tensorrt"]
    assert tensorrt.status == "broken"
    assert "libnvinfer.so.11 not found" in tensorrt.detail
    assert "tensorrt-cu13-libs" in tensorrt.remedies[0]


def test_tensorrt_without_its_compiled_module(machine):
    machine.install_everything()
    (machine.site / "tensorrt_bindings/tensorrt.so").unlink()
    assert "its compiled module is not in" in obstacles("tensorrt")["tensorrt"].detail


def test_the_bindings_of_tensorrt_alone(machine):
    machine.install("tensorrt-cu13-bindings", "11.4.0.106")
    tensorrt = found()["tensorrt"]
    assert tensorrt.status == "absent-but-fine"
    assert tensorrt.detail == "not installed; only tensorrt-cu13-bindings 11.4.0.106 is"


def test_torch_and_torchvision_that_do_not_fit(machine):
    machine.install_everything()
    machine.install_torch(build="cpu")
    torch = obstacles("torch")["torch"]
    assert torch.status == "broken"
    assert "torch is built for cpu, torchvision for cu132" in torch.detail


@pytest.mark.parametrize(
    ("build", "device"), [("cu132", "13.2: it can use the GPU"), ("cpu", "on the CPU")]
)
def test_where_torch_computes(machine, build, device):
    machine.install_everything()
    machine.install_torch(build=build, vision=build)
    assert found()["torch"].detail.endswith(device)


def test_torch_whose_files_are_gone(machine):
    machine.install("torch", "2.15.0")
    assert "its files are not" in obstacles("torch")["torch"].detail


def test_openvino_tells_what_it_computes_in(machine):
    machine.install_openvino("FP32", "BIN", "INT8")
    finding = found()["openvino"]
    assert (finding.status, finding.detail) == ("ok", "2026.4.1, which has FP32, INT8 here")
    assert ("openvino", "run") in working()


def test_openvino_that_is_missing(machine):
    machine.install_everything()
    machine.uninstall("openvino", "2026.4.1")
    finding = obstacles("openvino")["openvino"]
    assert finding.status == "absent-but-fine"
    assert finding.remedies == ('pip install "deploykit[openvino]"',)


@pytest.mark.parametrize("imports", [True, False])
def test_openvino_that_does_not_start(machine, imports):
    machine.install_openvino()
    if not imports:
        machine.module("openvino", None)
    finding = obstacles("openvino")["openvino"]
    assert finding.status == "broken"
    assert ("no plugin for the device CPU" in finding.detail) == imports
    assert finding.remedies == ("pip install --force-reinstall --no-deps openvino",)
