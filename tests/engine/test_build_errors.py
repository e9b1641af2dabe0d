"""Graphs and machines that TensorRT builds nothing from, and what is said about them."""

import dataclasses

import pytest
from engine_graphs import DEPLOY_GRAPH, save_graph

from deploykit.engine.build import engine_from_onnx
from deploykit.errors import DeviceError, GraphError, UsageError
from deploykit.specs.engine import Profile


def refused(build, path, text):
    with pytest.raises(GraphError) as caught:
        build(save_graph(path, text))
    return caught.value


@pytest.mark.parametrize(
    ("line", "operator"),
    [
        ("positive = NonZero (hidden)", "NonZero"),
        ("positive = other.Fancy (hidden)", "Fancy"),
    ],
)
def test_engine_from_onnx_names_an_unknown_operator(build, tmp_path, line, operator):
    text = DEPLOY_GRAPH.replace("positive = Relu (hidden)", line)
    text = text.replace('"" : 20', '"" : 20, "other" : 1')
    error = refused(build, tmp_path / "fp16.onnx", text)
    assert f"node node_positive ({operator})" in error.message
    assert "fp16.onnx" in error.message
    assert "forward" in error.hint


def test_engine_from_onnx_refuses_uint8_transpose(build, tmp_path):
    """Which is why normalisation casts first."""
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    net (uint8[N, 8, 8, 3] images) => (float[N, 3, 8, 8] logits) {
        planes = Transpose <perm = [0, 3, 1, 2]> (images)
        logits = Cast <to = 1> (planes)
    }
    """
    error = refused(build, tmp_path / "fp16.onnx", text)
    assert "node node_planes (Transpose)" in error.message
    assert "UInt8" in error.message
    assert "cudaError" not in error.message


@pytest.mark.parametrize(
    ("shape", "found"), [("5, 8, 8, 3", r"\[5, 8, 8, 3\]"), ("N, H, 8, 3", r"\[-1, -1, 8, 3\]")]
)
def test_engine_from_onnx_needs_only_a_dynamic_batch(build, tmp_path, shape, found):
    text = DEPLOY_GRAPH.replace("N, 8, 8, 3", shape)
    with pytest.raises(GraphError, match=f"images has shape {found}"):
        build(save_graph(tmp_path / "fp16.onnx", text))


def test_engine_from_onnx_of_what_is_no_graph(build, tmp_path):
    path = tmp_path / "fp16.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(GraphError, match="Failed to parse the ONNX model"):
        build(path)
    with pytest.raises(GraphError, match=r"missing\.onnx cannot be read"):
        build(tmp_path / "missing.onnx")


def test_engine_from_onnx_refuses_mixed_types(build, tmp_path):
    """The network is strongly typed: nothing is cast in secret."""
    text = DEPLOY_GRAPH.replace("half_weight = Cast <to = 10>", "half_weight = Cast <to = 1>")
    error = refused(build, tmp_path / "fp16.onnx", text)
    assert "node_hidden" in error.message
    assert "Half" in error.message


def test_engine_from_onnx_with_too_small_workspace(build):
    with pytest.raises(UsageError, match="within workspace limit") as caught:
        build(workspace_bytes=1)
    assert "--workspace allows 1 bytes" in caught.value.hint
    assert build(workspace_bytes=2**30).plan


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_engine_from_onnx_for_a_missing_gpu(rtx, no_gpu, flavour, tmp_path):
    tensorrt = dataclasses.replace(rtx, flavour=flavour)
    with pytest.raises(DeviceError, match="no NVIDIA driver") as caught:
        engine_from_onnx(
            tensorrt, tmp_path / "unread.onnx", profile=Profile(), targets=("current",)
        )
    assert "--target sm89" in caught.value.hint
    assert "Install NVIDIA's driver" in caught.value.hint


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("create_network", "network"),
        ("create_builder_config", "configuration"),
        ("create_optimization_profile", "profile"),
    ],
)
def test_engine_from_onnx_without_a_tensorrt_object(rtx, build, alter_builder, method, what):
    def fail(builder, *arguments):
        rtx.log.log(rtx.trt.ILogger.Severity.ERROR, "out of handles")

    alter_builder(**{method: fail})
    with pytest.raises(DeviceError, match=f"makes no {what}") as caught:
        build()
    assert caught.value.message.endswith(":\nout of handles")
    assert ": deploykit doctor" in caught.value.hint


def test_engine_from_onnx_without_builder(rtx, deploy_graph):
    class Trt:
        def Builder(self, log):  # noqa: N802  # TensorRT's name
            log.log(rtx.trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("factory function returned nullptr")

    tensorrt = dataclasses.replace(rtx, trt=Trt())
    with pytest.raises(DeviceError, match="CUDA initialization failure with error: 35"):
        engine_from_onnx(tensorrt, deploy_graph, profile=Profile(), targets=("sm89",))


OUT_OF_DEVICE_MEMORY = "IBuilder: Error Code 1: Cuda Runtime (out of memory)"
OUT_OF_MEMORY = "Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)"
NO_KERNEL = "Error Code 10: Could not find any implementation for node conv."


@pytest.mark.parametrize(
    ("line", "workspace_bytes", "kind", "hint"),
    [
        (OUT_OF_DEVICE_MEMORY, None, DeviceError, "lower --max-batch"),
        (OUT_OF_DEVICE_MEMORY, 1024, DeviceError, "lower --max-batch"),
        (OUT_OF_MEMORY, None, DeviceError, "lower --max-batch"),
        (OUT_OF_MEMORY, 1024, UsageError, "allows 1,024 bytes: allow more, or leave it out"),
        (NO_KERNEL, None, GraphError, "another precision than this one (--precision fp16, fp32"),
        (NO_KERNEL, 1024, GraphError, "another precision than this one (--precision fp16, fp32"),
    ],
)
def test_engine_from_onnx_failed_error_types(
    rtx, build, alter_builder, line, workspace_bytes, kind, hint
):
    def fail(builder, network, config):
        rtx.log.log(rtx.trt.ILogger.Severity.ERROR, line)

    alter_builder(build_serialized_network=fail)
    with pytest.raises(kind) as caught:
        build(workspace_bytes=workspace_bytes)
    assert line in caught.value.message
    assert hint in caught.value.hint
    assert ("--workspace" in caught.value.hint) is (kind is UsageError)


def test_engine_from_onnx_fp32_for_turing(build, tmp_path):
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    net (uint8[N, 8, 8, 3] images) => (float[N, 3] logits)
    <float[192, 3] weight = {WEIGHTS}> {
        numbers = Cast <to = 1> (images)
        rows = Flatten (numbers)
        logits = MatMul (rows, weight)
    }
    """
    text = text.replace("WEIGHTS", ", ".join(["0.5"] * 576))
    path = save_graph(tmp_path / "fp32.onnx", text)
    assert build(path, targets=("sm86",)).plan
    with pytest.raises(GraphError, match=r"for Turing \(SM75\): FP32 GEMM") as caught:
        build(path, targets=("sm75",))
    assert "Build in FP16 (--precision fp16), or for newer GPUs" in caught.value.hint
    assert "--precision fp32" not in caught.value.hint


def test_engine_from_onnx_for_an_unsupported_target(rtx, deploy_graph):
    class Trt:
        ComputeCapability = object

        def __getattr__(self, name):
            return getattr(rtx.trt, name)

    tensorrt = dataclasses.replace(rtx, trt=Trt())
    with pytest.raises(UsageError, match="does not build for sm121"):
        engine_from_onnx(tensorrt, deploy_graph, profile=Profile(), targets=("sm121",))
