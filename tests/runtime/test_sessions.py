import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest
import torch
from fake_session import FakeSession
from runtime_graphs import ERROR_LIMIT, open_on, random_images, relative_error
from torch import nn
from torch.nn import functional

from deploykit.errors import DeviceError, GraphError, InputError, UsageError
from deploykit.runtime.opener import REHEARSAL, RUNTIMES, open_graph, open_module
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.gpu import Gpu

PREPROCESSING = Preprocessing(resize=(4, 5), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
CANONICAL = """
net (float[N, 3, 4, 5] input) => (float[N, 3] logits) <int64[2] axes = {2, 3}> {
    logits = ReduceMean<keepdims = 0>(input, axes)
}"""
DEPLOY = """
net (uint8[N, 4, 5, 3] images) => (float[N, 3] logits) <int64[2] axes = {1, 2}> {
    values = Cast<to = 1>(images)
    logits = ReduceMean<keepdims = 0>(values, axes)
}"""
WIRED = """
net (uint8[N, 4, 5, 3] images) => (float[N, 3] logits)
<int64[3] axes = {0, 1, 2}, int64[2] shape = {1, 3}> {
    values = Cast<to = 1>(images)
    means = ReduceMean<keepdims = 0>(values, axes)
    logits = Reshape(means, shape)
}"""
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)


class ChannelMeans(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


@pytest.fixture
def open_text(tmp_path):
    def open_it(text, *, runtime="onnxruntime-cpu", classes=3, precision="fp32", **options):
        ir.save(ir.from_onnx_text(HEADER + text), tmp_path / "graph.onnx")
        return open_graph(
            tmp_path / "graph.onnx",
            name="graph.onnx",
            runtime=runtime,
            precision=precision,
            preprocessing=PREPROCESSING,
            labels=Labels.numbered(classes),
            **options,
        )

    return open_it


PADDED = """
net (uint8[N, 4, 5, 3] images) => (float[N, 3] logits)
<int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}}, float value = {{{value}}}, float far = {{-300}},
 int64[2] axes = {{2, 3}}> {{
    values = Cast<to = 1>(images)
    channels = Transpose<perm = [0, 3, 1, 2]>(values)
    negative = Add(channels, far)
    padded = Pad(negative, pads, value)
    pooled = {pool}<kernel_shape = [3, 3], strides = [2, 2]>(padded)
    logits = ReduceMean<keepdims = 0>(pooled, axes)
}}"""


def pooled_means(pool, value):
    """What that graph gives of the images, by torch."""
    negative = torch.tensor(IMAGES).permute(0, 3, 1, 2).float() - 300
    padded = functional.pad(negative, (1, 1, 1, 1), value=value)
    pooling = functional.max_pool2d if pool == "MaxPool" else functional.avg_pool2d
    return pooling(padded, 3, 2).mean((2, 3)).numpy()


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "openvino"])
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-8, -1000.0])
@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
def test_session_padding_before_a_pool(open_text, runtime, pool, value):
    """timm's resnetv2_50x1_bit pads with zeros what is negative."""
    with open_text(PADDED.format(pool=pool, value=value), runtime=runtime) as session:
        assert relative_error(session.run(IMAGES), pooled_means(pool, value)) <= ERROR_LIMIT["fp32"]


def normalised_means(images):
    mean, std = np.array(PREPROCESSING.mean), np.array(PREPROCESSING.std)
    return ((images / 255 - mean) / std).mean((1, 2))


def test_session_normalises_for_the_canonical_graph(open_text):
    with open_text(CANONICAL) as session:
        logits = session.run(IMAGES)
    assert logits.dtype == np.float32
    assert logits == pytest.approx(normalised_means(IMAGES), rel=1e-5)


def test_session_gives_bytes_to_the_deploy_graph(open_text):
    with open_text(DEPLOY) as session:
        assert session.run(IMAGES) == pytest.approx(IMAGES.mean((1, 2)), rel=1e-6)


def test_module_session_normalises():
    with open_module(ChannelMeans(), preprocessing=PREPROCESSING, classes=3) as session:
        assert session.run(IMAGES) == pytest.approx(normalised_means(IMAGES), rel=1e-5)


def test_module_session_normalises_exactly_as_torchvision():
    from torchvision import transforms

    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(PREPROCESSING.mean, PREPROCESSING.std)]
    )

    class First(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :60]

    with open_module(First(), preprocessing=PREPROCESSING, classes=60) as session:
        found = session.run(IMAGES)
    for image, row in zip(IMAGES, found, strict=True):
        assert np.array_equal(transform(image).flatten().numpy(), row)


def test_session_spec(open_text):
    spec = open_text(DEPLOY).spec
    assert (spec.runtime, spec.graph, spec.precision) == ("onnxruntime-cpu", "graph.onnx", "fp32")
    assert (spec.device, spec.input_size, spec.classes) == ("CPU", (4, 5), 3)
    assert spec.largest_batch is None


def test_session_int8_device_has_instruction_set(open_text):
    assert open_text(DEPLOY, precision="int8").spec.device.startswith("CPU (")


def test_session_logits_are_copies(open_text):
    session = open_text(DEPLOY)
    first = session.run(IMAGES)
    kept = first.copy()
    session.run(IMAGES[::-1].copy())
    assert np.array_equal(first, kept)


def test_session_takes_read_only_images(open_text):
    images = IMAGES.copy()
    images.flags.writeable = False
    with open_module(ChannelMeans(), preprocessing=PREPROCESSING, classes=3) as reference:
        reference.run(images)
    open_text(CANONICAL).run(images)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES.astype(np.float32),
        IMAGES[0],
        IMAGES.transpose(0, 3, 1, 2),
        IMAGES[:, :3],
        IMAGES[:0],
    ],
    ids=["type", "one image", "channels first", "size", "empty"],
)
def test_session_refuses_unsuitable_batches(open_text, images):
    with pytest.raises(InputError, match="A batch must"):
        open_text(DEPLOY).run(images)


def test_session_refuses_batches_above_the_largest():
    session = FakeSession(lambda images: images.mean((1, 2)), classes=3, largest_batch=2)
    with pytest.raises(InputError, match="1 to 2 images; got 3"):
        session.run(np.zeros((3, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08\x0a"])
def test_open_graph_of_what_is_no_graph(tmp_path, content):
    (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(GraphError):
        open_graph(
            tmp_path / "graph.onnx",
            name="graph.onnx",
            runtime="onnxruntime-cpu",
            precision="fp32",
            preprocessing=PREPROCESSING,
            labels=Labels.numbered(3),
        )


@pytest.mark.parametrize(
    "text",
    [
        CANONICAL.replace("4, 5", "6, 6"),
        CANONICAL.replace(" input", " x").replace("(input", "(x"),
        DEPLOY.replace("logits", "scores"),
    ],
    ids=["size", "input name", "output name"],
)
def test_open_graph_refuses_a_foreign_graph(open_text, text):
    with pytest.raises(GraphError, match="not the graph that the manifest describes"):
        open_text(text)


def test_open_graph_refuses_other_number_of_classes(open_text):
    with pytest.raises(GraphError, match="not the graph that the manifest describes"):
        open_text(DEPLOY, classes=4)


def test_open_graph_of_unknown_runtime_suggests_one(open_text):
    with pytest.raises(UsageError, match="There is no runtime") as caught:
        open_text(DEPLOY, runtime="onnxruntime-gpu")
    assert caught.value.hint in {f"Did you mean {name}?" for name in RUNTIMES}


def test_open_graph_refuses_fp16_on_cpu(tmp_path):
    """ONNX Runtime's CPU provider would run it in FP32 and prove nothing."""
    with pytest.raises(UsageError, match="onnxruntime-cpu does not compute in fp16") as caught:
        open_graph(
            tmp_path / "graph.onnx",
            name="graph.onnx",
            runtime="onnxruntime-cpu",
            precision="fp16",
            preprocessing=PREPROCESSING,
            labels=Labels.numbered(3),
        )
    assert "onnxruntime-cuda" in caught.value.hint


def test_session_refuses_answers_of_another_shape():
    session = FakeSession(lambda images: images.mean((0, 1, 2))[None], classes=3)
    with pytest.raises(GraphError, match=r"answers 2 images with shape \(1, 3\)"):
        session.run(np.zeros((2, 8, 8, 3), np.uint8))


def test_session_refuses_a_graph_with_fixed_batch(open_text):
    """One that was exported with a batch of 1 wired in."""
    with (
        open_text(WIRED) as session,
        pytest.raises(GraphError, match=r"answers 3 images with shape \(1, 3\), not \(3, 3\)"),
    ):
        session.run(IMAGES)


def test_session_in_several_threads(open_text, monkeypatch):
    both_filled = threading.Barrier(2, timeout=20)
    with open_text(DEPLOY, threads=1) as session, ThreadPoolExecutor(2) as pool:
        assert session.spec.concurrent
        run = session._session.run_with_iobinding

        def run_together(binding):
            both_filled.wait()
            run(binding)
            both_filled.wait()

        monkeypatch.setattr(session._session, "run_with_iobinding", run_together)
        for _ in range(2):
            batches = [IMAGES, IMAGES[::-1].copy()]
            for images, logits in zip(batches, pool.map(session.run, batches), strict=True):
                assert logits == pytest.approx(images.mean((1, 2)), rel=1e-6)


def test_session_failed_run_is_not_repeated(open_text, monkeypatch):
    """ONNX Runtime would print, move the session to the CPU, and go on."""
    session = open_text(DEPLOY)
    assert not session._session._enable_fallback

    def fail(binding):
        from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

        raise EPFail("CUDA failure 700: an illegal memory access")

    monkeypatch.setattr(session._session, "run_with_iobinding", fail)
    with pytest.raises(GraphError, match="CUDA failure 700"):
        session.run(IMAGES)


def test_onnx_runtime_errors_are_all_mapped():
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    from deploykit.runtime._onnxruntime import ORT_ERRORS

    assert {state.EPFail, state.Fail, state.InvalidGraph, state.NoSuchFile} <= set(ORT_ERRORS)


def test_open_graph_on_cuda_without_driver(open_text, monkeypatch):
    def no_library(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("deploykit.system.gpu.ctypes.CDLL", no_library)
    with pytest.raises(DeviceError) as caught:
        open_text(DEPLOY, runtime="onnxruntime-cuda")
    assert "driver" in caught.value.message or "CUDA provider" in caught.value.message
    assert "onnxruntime-cpu" in caught.value.hint
    assert caught.value.exit_code == 5


def test_session_takes_batches_of_any_size(open_text):
    session = open_text(DEPLOY)
    for count in (2, 2, 3, 1, 1, 3):
        images = np.roll(IMAGES, count, axis=3)[:count]
        assert session.run(images) == pytest.approx(images.mean((1, 2)), rel=1e-6)


def test_session_takes_non_contiguous_images(open_text):
    for text in (DEPLOY, CANONICAL):
        session = open_text(text)
        assert np.array_equal(session.run(IMAGES[::-1]), session.run(IMAGES)[::-1])


def test_open_graph_of_bytes():
    graph = ir.to_proto(ir.from_onnx_text(HEADER + DEPLOY)).SerializeToString()
    session = open_graph(
        graph,
        name="deploy/fp16.onnx",
        runtime=REHEARSAL,
        precision="fp16",
        preprocessing=PREPROCESSING,
        labels=Labels.numbered(3),
    )
    assert session.run(IMAGES) == pytest.approx(IMAGES.mean((1, 2)), rel=1e-6)
    spec = session.spec
    assert (spec.runtime, spec.precision, spec.device) == ("rehearsal", "fp16", "CPU")
    assert spec.graph == "deploy/fp16.onnx"


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_open_graph_refuses_tensorrt(open_text, flavour):
    with pytest.raises(UsageError, match=r"'tensorrt.*' is no runtime of ONNX graphs"):
        open_text(DEPLOY, runtime=flavour)


def test_open_graph_refuses_tf32_on_cpu(open_text):
    with pytest.raises(UsageError, match="onnxruntime-cpu has no TF32") as caught:
        open_text(DEPLOY, tf32=True)
    assert "onnxruntime-cuda" in caught.value.hint


@pytest.fixture
def gpu_of_straw(monkeypatch):
    """Let the CPU provider pass for CUDA's, and remember what it was asked for."""
    import onnxruntime as ort

    asked = {"provider": "CUDAExecutionProvider", "devices": []}
    open_session, allocate = ort.InferenceSession, ort.OrtValue.ortvalue_from_shape_and_type
    bind_output = ort.IOBinding.bind_output

    def open_on_cpu(graph, options, *, providers, disabled_optimizers, enable_fallback):
        ((_, asked["options"]),) = providers
        session = open_session(graph, options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(session, "get_providers", lambda: [asked["provider"]])
        return session

    def allocate_on_cpu(shape, dtype, device, number):
        asked["devices"].append((device, shape))
        return allocate(shape, dtype, "cpu", number)

    def bind_on_cpu(binding, name, device):
        asked["devices"].append((device, name))
        bind_output(binding, name, "cpu")

    gpu = Gpu("Straw RTX", (8, 9), (13, 0))
    state = "deploykit.runtime._onnxruntime"
    monkeypatch.setattr("deploykit.runtime.opener.need_gpu", lambda: gpu)
    monkeypatch.setattr(f"{state}.ort.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(f"{state}.ort.preload_dlls", lambda: None)
    monkeypatch.setattr(f"{state}.ort.InferenceSession", open_on_cpu)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", allocate_on_cpu)
    monkeypatch.setattr(ort.IOBinding, "bind_output", bind_on_cpu)
    return asked


def test_cuda_session_keeps_batches_on_the_gpu(open_text, gpu_of_straw):
    with open_text(DEPLOY, runtime="onnxruntime-cuda") as session:
        assert session.spec.device == "Straw RTX"
        assert not session.spec.concurrent
        for _ in range(3):
            assert session.run(IMAGES) == pytest.approx(IMAGES.mean((1, 2)), rel=1e-6)
    assert gpu_of_straw["devices"] == [("cuda", (3, 4, 5, 3)), ("cuda", "logits")]


@pytest.mark.parametrize(
    ("precision", "tf32", "expected"),
    [("fp32", False, ("0", "0")), ("fp32", True, ("1", "0")), ("fp16", False, ("0", "1"))],
)
def test_cuda_session_options(open_text, gpu_of_straw, precision, tf32, expected):
    session = open_text(DEPLOY, runtime="onnxruntime-cuda", precision=precision, tf32=tf32)
    options = gpu_of_straw["options"]
    assert (options["use_tf32"], options["prefer_nhwc"]) == expected
    assert session.spec.tf32 is tf32


def test_cuda_session_that_falls_back_is_an_error(open_text, gpu_of_straw):
    gpu_of_straw["provider"] = "CPUExecutionProvider"
    with pytest.raises(DeviceError, match="would run on CPUExecutionProvider") as caught:
        open_text(DEPLOY, runtime="onnxruntime-cuda")
    assert 'pip install "deploykit[cuda]"' in caught.value.hint


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_session_answers_as_cpu(small_graphs, small_preprocessing, precision):
    reference = open_on("onnxruntime-cpu", small_graphs, "fp32", small_preprocessing)
    session = open_on("onnxruntime-cuda", small_graphs, precision, small_preprocessing)
    with reference, session:
        assert session.spec.runtime == "onnxruntime-cuda"
        for count in (1, 8, 8, 3):
            images = random_images(count, small_preprocessing)
            error = relative_error(session.run(images), reference.run(images))
            assert error < ERROR_LIMIT[precision]


@pytest.mark.gpu
def test_cuda_session_normalises_for_the_canonical_graph(open_text):
    with open_text(CANONICAL, runtime="onnxruntime-cuda") as session:
        assert session.run(IMAGES) == pytest.approx(normalised_means(IMAGES), rel=1e-4)


@pytest.mark.gpu
def test_cuda_session_in_tf32(small_graphs, small_preprocessing):
    images = random_images(8, small_preprocessing)
    runtime = "onnxruntime-cuda"
    with (
        open_on(runtime, small_graphs, "fp32", small_preprocessing) as plain,
        open_on(runtime, small_graphs, "fp32", small_preprocessing, tf32=True) as rounded,
    ):
        assert (plain.spec.tf32, rounded.spec.tf32) == (False, True)
        assert relative_error(rounded.run(images), plain.run(images)) < ERROR_LIMIT["fp16"]


def test_session_closed_does_not_run(open_text):
    session = open_text(DEPLOY)
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(IMAGES)
