import importlib.util
import sys

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

from fake_cuda import FakeCuda, Faults
from fake_tensorrt import CLASSES, PLAN, DataType, FakeTensorRT, Mode
from runtime_graphs import (
    ERROR_LIMIT,
    LABELS,
    open_on,
    random_images,
    relative_error,
    write_deploy_graphs,
)

from deploykit.errors import DependencyError, DeviceError, GraphError, InputError
from deploykit.runtime.opener import open_engine
from deploykit.specs.engine import Profile
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.gpu import Gpu

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 4, 5, 3), dtype=np.uint8)
FLAVOURS = ("tensorrt", "tensorrt_rtx")


def means(images):
    return pytest.approx(images.mean((1, 2)), rel=1e-6)


@pytest.fixture
def machine(monkeypatch):
    """Make a machine with a fake GPU, a fake CUDA and a fake TensorRT."""

    def make(flavour="tensorrt", *, fail_at=None, **engine):
        cuda = FakeCuda(Faults(fail_at))
        monkeypatch.setattr("deploykit.runtime._cuda.cudart", cuda)
        gpu = Gpu("Fake RTX", (8, 9), (13, 0))
        monkeypatch.setattr("deploykit.runtime.opener.need_gpu", lambda: gpu)
        return FakeTensorRT(cuda, flavour, **engine)

    return make


def open_it(
    tensorrt, *, plan=PLAN, profile=(1, 2, 4), size=(4, 5), classes=CLASSES, cache=None, **steps
):
    least, best, most = profile
    return open_engine(
        tensorrt,
        plan,
        name="engines/toy.engine",
        precision="fp16",
        profile=Profile(min_batch=least, opt_batch=best, max_batch=most),
        preprocessing=Preprocessing(resize=size, **steps),
        labels=Labels.numbered(classes),
        cache=cache,
    )


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_engine_session_at_every_batch_size(machine, flavour):
    tensorrt = machine(flavour)
    with open_it(tensorrt) as session:
        for count in (1, 2, 4, 4, 4, 3, 4, 1, 1, 1, 4):
            images = np.roll(IMAGES, count, axis=2)[:count]
            logits = session.run(images)
            assert logits.dtype == np.float32
            assert logits == means(images)
    assert tensorrt.executed == [1, 2, 4, 4, 4, 3, 4, 1, 1, 1, 4]
    assert not tensorrt.cuda.ledger


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_engine_session_of_float_pixels(machine, flavour):
    tensorrt, images = machine(flavour), IMAGES + np.float32(0.3)
    tensorrt.tensors["images"] = (Mode.INPUT, DataType.FLOAT, (-1, 4, 5, 3))
    with open_it(tensorrt, pixels="float32") as session:
        assert session.run(images) == means(images)
        assert session.run(images[:1]) == means(images[:1])
        assert session.run(IMAGES) == means(IMAGES)  # bytes are floats without loss
        tickets = [session.submit(images), session.submit(IMAGES)]
        assert session.collect(tickets[1]) == means(IMAGES)
        assert session.collect(tickets[0]) == means(images)
        with pytest.raises(InputError, match="float32 of shape"):
            session.run(images.astype(np.float64))
    assert not tensorrt.cuda.ledger


def test_engine_session_of_bytes_for_a_network_of_floats(machine):
    with pytest.raises(GraphError, match="not an engine of this bundle"):
        open_it(machine(), pixels="float32")


def test_engine_session_spec(machine):
    with open_it(machine("tensorrt_rtx")) as session:
        spec = session.spec
    assert (spec.runtime, spec.graph) == ("tensorrt_rtx", "engines/toy.engine")
    assert (spec.precision, spec.device) == ("fp16", "Fake RTX")
    assert (spec.input_size, spec.classes, spec.largest_batch) == ((4, 5), 3, 4)


def test_engine_session_collects_in_any_order(machine):
    tensorrt = machine()
    with open_it(tensorrt) as session:
        first = session.submit(IMAGES[:2])
        second = session.submit(IMAGES[2:])
        assert tensorrt.executed == []
        assert session.collect(second) == means(IMAGES[2:])
        third = session.submit(IMAGES[1:2])
        assert session.collect(third) == means(IMAGES[1:2])
        assert session.collect(first) == means(IMAGES[:2])


def test_engine_session_refuses_a_third_batch(machine):
    with open_it(machine()) as session:
        tickets = [session.submit(IMAGES[:1]), session.submit(IMAGES[1:2])]
        with pytest.raises(RuntimeError, match="2 batches are in flight"):
            session.submit(IMAGES)
        assert session.collect(tickets[0]) == means(IMAGES[:1])
        with pytest.raises(RuntimeError, match="not in flight"):
            session.collect(tickets[0])


def test_engine_session_copies_submitted_images(machine):
    images = IMAGES.copy()
    with open_it(machine()) as session:
        ticket = session.submit(images)
        images[:] = 0
        assert session.collect(ticket) == means(IMAGES)


def test_engine_session_logits_are_copies(machine):
    with open_it(machine()) as session:
        first = session.run(IMAGES)
        session.run(IMAGES[::-1])
    assert first == means(IMAGES)


def test_engine_session_captures_a_repeated_batch_size_once(machine):
    tensorrt = machine()
    with open_it(tensorrt) as session:
        for _ in range(5):
            session.run(IMAGES)
        session.run(IMAGES[:3])
    calls = tensorrt.cuda.faults.calls
    assert calls.count("cudaStreamBeginCapture") == 1
    assert calls.count("cudaGraphLaunch") == 4
    # The first of each size, and the one that is recorded.
    assert calls.count("execute_async_v3") == 3


def test_engine_session_captures_again_after_another_size(machine):
    tensorrt = machine()
    with open_it(tensorrt) as session:
        for count in (4, 4, 2, 4, 4, 4):
            assert session.run(IMAGES[:count]) == means(IMAGES[:count])
    assert tensorrt.cuda.faults.calls.count("cudaStreamBeginCapture") == 2


def test_engine_session_of_rtx_captures_by_itself(machine):
    tensorrt = machine("tensorrt_rtx")
    with open_it(tensorrt) as session:
        for _ in range(3):
            session.run(IMAGES)
    assert "cudaStreamBeginCapture" not in tensorrt.cuda.faults.calls
    (config,) = tensorrt.configs
    assert config.cuda_graph_strategy == "whole"
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"


def test_engine_session_makes_a_second_slot_if_needed(machine):
    tensorrt = machine()
    with open_it(tensorrt) as session:
        for count in (4, 2, 4, 4):
            session.run(IMAGES[:count])
        assert len(tensorrt.configs) == 1
        for _ in range(3):
            tickets = [session.submit(IMAGES), session.submit(IMAGES[:1])]
            assert session.collect(tickets[0]) == means(IMAGES)
            assert session.collect(tickets[1]) == means(IMAGES[:1])
        assert len(tensorrt.configs) == 2
    assert not tensorrt.cuda.ledger


def test_engine_session_without_memory_for_a_second_slot(machine):
    tensorrt = machine()
    with open_it(tensorrt) as session:
        ticket = session.submit(IMAGES)
        tensorrt.cuda.faults.at = len(tensorrt.cuda.faults.calls) + 3
        with pytest.raises(DeviceError, match="allocating"):
            session.submit(IMAGES[:2])
        assert session.collect(ticket) == means(IMAGES)
        assert session.run(IMAGES[:2]) == means(IMAGES[:2])
    assert not tensorrt.cuda.ledger


def test_engine_session_enqueues_what_cannot_be_captured(machine):
    tensorrt = machine()
    tensorrt.can_capture = False
    with open_it(tensorrt) as session:
        for count in (4, 4, 4, 2, 2, 4, 4):
            assert session.run(IMAGES[:count]) == means(IMAGES[:count])
    assert tensorrt.executed == [4, 4, 4, 2, 2, 4, 4]
    assert tensorrt.cuda.faults.calls.count("cudaStreamBeginCapture") == 1
    assert not tensorrt.cuda.ledger


def compiled_by(tensorrt, cache):
    """What is compiled when a session runs a batch of 4, beside one of 2."""
    tensorrt.compiled.clear()
    with open_it(tensorrt, cache=cache) as session:
        tickets = [session.submit(IMAGES), session.submit(IMAGES[:2])]
        assert session.collect(tickets[0]) == means(IMAGES)
        assert session.collect(tickets[1]) == means(IMAGES[:2])
    return tensorrt.compiled.copy()


ALL_KERNELS = ["a context", "a batch of 4", "a batch of 2"]


def test_engine_session_slots_share_kernels(machine):
    assert compiled_by(machine("tensorrt_rtx"), None) == ALL_KERNELS


def test_kernel_cache_is_kept_for_next_session(machine, tmp_path):
    cache = tmp_path / "cache" / "toy.engine.runtime"
    with open_it(machine("tensorrt_rtx"), cache=cache) as session:
        session.run(IMAGES)
    assert compiled_by(machine("tensorrt_rtx"), cache) == ["a batch of 2"]
    written = cache.stat()
    assert compiled_by(machine("tensorrt_rtx"), cache) == []
    found = cache.stat()
    assert (found.st_ino, found.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert list(cache.parent.iterdir()) == [cache]


@pytest.mark.parametrize("content", [b"", b"\xff\x00 damaged", b"sm75\na context\na batch of 4"])
def test_kernel_cache_of_other_content_is_replaced(machine, tmp_path, content):
    cache = tmp_path / "toy.engine.runtime"
    cache.write_bytes(content)
    assert compiled_by(machine("tensorrt_rtx"), cache) == ALL_KERNELS
    assert compiled_by(machine("tensorrt_rtx"), cache) == []


@pytest.mark.parametrize(("call", "compiled"), [("deserialize", ALL_KERNELS), ("serialize", [])])
def test_kernel_cache_that_fails(machine, tmp_path, call, compiled):
    cache = tmp_path / "toy.engine.runtime"
    compiled_by(machine("tensorrt_rtx"), cache)
    tensorrt = machine("tensorrt_rtx")
    compiled_by(tensorrt, cache)
    number = tensorrt.cuda.faults.calls.index(call) + 1
    assert compiled_by(machine("tensorrt_rtx", fail_at=number), cache) == compiled
    assert compiled_by(machine("tensorrt_rtx"), cache) == []


@pytest.mark.parametrize("place", ["a folder", "below a file"])
def test_kernel_cache_that_cannot_be_written(machine, tmp_path, place):
    (tmp_path / "file").touch()
    cache = tmp_path if place == "a folder" else tmp_path / "file" / "toy.engine.runtime"
    for _ in range(2):
        assert compiled_by(machine("tensorrt_rtx"), cache) == ALL_KERNELS
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_kernel_cache_not_with_tensorrt(machine, tmp_path):
    with open_it(machine("tensorrt"), cache=tmp_path / "toy.engine.runtime") as session:
        session.run(IMAGES)
    assert not list(tmp_path.iterdir())


def test_engine_session_refuses_old_cuda_bindings(machine, monkeypatch):
    tensorrt = machine()
    monkeypatch.delattr("cuda.bindings.utils.get_cuda_native_handle")
    for name in [*sys.modules]:
        if name.startswith(("deploykit.runtime._cuda", "deploykit.runtime._tensorrt")):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(DependencyError, match=r"cuda-bindings .* is too old") as caught:
        open_it(tensorrt)
    assert 'pip install --upgrade "cuda-bindings>=12.9.1"' in caught.value.hint


def test_engine_session_of_older_rtx_without_graphs(machine):
    tensorrt = machine("tensorrt_rtx")
    del tensorrt.trt.CudaGraphStrategy
    with open_it(tensorrt) as session:
        for _ in range(3):
            assert session.run(IMAGES) == means(IMAGES)
    assert tensorrt.configs == [None]


def test_engine_session_pads_small_batches(machine):
    tensorrt = machine(batches=(3, 3, 4))
    with open_it(tensorrt, profile=(3, 3, 4)) as session:
        assert session.run(IMAGES) == means(IMAGES)
        assert session.run(IMAGES[2:3]) == means(IMAGES[2:3])
    assert tensorrt.executed == [4, 3]
    assert np.array_equal(tensorrt.seen, IMAGES[[2, 2, 2]])


def test_engine_session_refuses_unsuitable_batches(machine):
    with open_it(machine()) as session:
        with pytest.raises(InputError, match="1 to 4 images; got 8"):
            session.run(np.concatenate([IMAGES, IMAGES]))
        with pytest.raises(InputError, match="A batch must be uint8"):
            session.submit(IMAGES.astype(np.float32))


def test_engine_session_closed_does_not_run(machine):
    tensorrt = machine()
    session = open_it(tensorrt)
    ticket = session.submit(IMAGES)
    session.close()
    session.close()
    assert not tensorrt.cuda.ledger
    with pytest.raises(RuntimeError, match="closed"):
        session.run(IMAGES)
    with pytest.raises(RuntimeError, match="not in flight"):
        session.collect(ticket)


@pytest.mark.parametrize(
    "change",
    [
        {"images": (Mode.INPUT, DataType.FLOAT, (-1, 4, 5, 3))},
        {"images": (Mode.INPUT, DataType.UINT8, (-1, 3, 4, 5))},
        {"logits": (Mode.OUTPUT, DataType.HALF, (-1, CLASSES))},
        {"logits": (Mode.OUTPUT, DataType.FLOAT, (-1, CLASSES + 1))},
        {"logits": (Mode.INPUT, DataType.FLOAT, (-1, CLASSES))},
        {"more": (Mode.OUTPUT, DataType.FLOAT, (-1, CLASSES))},
    ],
    ids=["image type", "channels first", "logit type", "classes", "direction", "another output"],
)
def test_engine_session_refuses_foreign_engines(machine, change):
    tensorrt = machine()
    tensorrt.tensors.update(change)
    with pytest.raises(GraphError, match="not an engine of this bundle") as caught:
        open_it(tensorrt)
    assert "build-trt" in caught.value.hint
    assert not tensorrt.cuda.ledger


def test_engine_session_refuses_another_profile(machine):
    tensorrt = machine(batches=(1, 2, 3))
    with pytest.raises(GraphError, match=r"batches of \[1, 2, 3\].* says \[1, 2, 4\]"):
        open_it(tensorrt)


def test_engine_session_of_an_unreadable_plan(machine):
    with pytest.raises(DeviceError, match="no engine of this version") as caught:
        open_it(machine(), plan=b"vtrt")
    assert "engines/toy.engine" in caught.value.message
    assert "deploykit build-trt" in caught.value.hint
    assert caught.value.exit_code == 5


def test_engine_session_maps_tensorrt_errors(machine, monkeypatch):
    def fail(context):
        raise RuntimeError("shape inference failed")

    monkeypatch.setattr("fake_tensorrt.Context.infer_shapes", fail)
    with (
        open_it(machine()) as session,
        pytest.raises(DeviceError, match="preparing a batch of 4: shape inference failed"),
    ):
        session.run(IMAGES)


def use(tensorrt):
    """Open an engine, run it in every way that there is, and close it."""
    with open_it(tensorrt) as session:
        for count in (2, 2, 2, 1):
            session.run(IMAGES[:count])
        tickets = [session.submit(IMAGES), session.submit(IMAGES)]
        session.collect(tickets[0])


def failing_calls(flavour):
    cuda = FakeCuda()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploykit.runtime._cuda.cudart", cuda)
        patch.setattr("deploykit.runtime.opener.need_gpu", lambda: Gpu("Fake", (8, 9), (13, 0)))
        use(FakeTensorRT(cuda, flavour))
    return list(enumerate(cuda.faults.calls, start=1))


def capture_in(calls):
    """The numbers of the calls that capture a graph."""
    numbers = {call: number for number, call in calls}
    if "cudaStreamBeginCapture" not in numbers:
        return range(0)
    return range(numbers["cudaStreamBeginCapture"], numbers["cudaGraphDestroy"] + 1)


def test_engine_session_capture_fails_at_any_call(machine):
    calls = dict(failing_calls("tensorrt"))
    captured = capture_in(calls.items())
    assert {"execute_async_v3", "cudaStreamEndCapture", "cudaGraphInstantiate"} < {
        calls[number] for number in captured
    }
    for number in captured:
        tensorrt = machine(fail_at=number)
        use(tensorrt)
        assert tensorrt.executed == [2, 2, 2, 1, 4, 4]
        assert not tensorrt.cuda.ledger, f"{calls[number]}, call {number}"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_engine_session_failed_call_frees_everything(machine, flavour):
    calls = failing_calls(flavour)
    assert len({call for _, call in calls}) >= 18
    for number, call in calls:
        if number in capture_in(calls):
            continue
        tensorrt = machine(flavour, fail_at=number)
        with pytest.raises(DeviceError) as caught:
            use(tensorrt)
        message = caught.value.message
        if hasattr(FakeCuda, call):
            assert "cudaError" in message, call
        elif call != "infer_shapes":
            assert f"{call} is refused" in message, call
        assert caught.value.hint
        del caught
        assert not tensorrt.cuda.ledger, f"{call}, call {number}"


@pytest.mark.parametrize(
    "call", ["set_input_shape", "infer_shapes", "execute_async_v3", "cudaEventRecord"]
)
def test_engine_session_works_after_a_failed_batch(machine, call):
    tensorrt = machine()
    with open_it(tensorrt) as session:
        session.run(IMAGES[:2])
        faults = tensorrt.cuda.faults
        before = faults.calls.copy()
        session.run(IMAGES[:3])
        steps = faults.calls[len(before) :]
        faults.at = len(faults.calls) + steps.index(call) + 1
        with pytest.raises(DeviceError):
            session.run(IMAGES)
        for _ in range(3):
            assert session.run(IMAGES) == means(IMAGES)
        tickets = [session.submit(IMAGES[:1]), session.submit(IMAGES)]
        assert session.collect(tickets[0]) == means(IMAGES[:1])
        assert session.collect(tickets[1]) == means(IMAGES)
    assert not tensorrt.cuda.ledger


def test_engine_session_reports_the_first_failure(machine):
    """A device that failed fails every later call too."""
    calls = [call for _, call in failing_calls("tensorrt")]
    failed_run = calls.index("cudaEventSynchronize") + 1

    class Broken(Faults):
        def strike(self, call):
            return super().strike(call) or len(self.calls) > failed_run

    tensorrt = machine(fail_at=failed_run)
    tensorrt.cuda.faults = Broken(failed_run)
    with pytest.raises(DeviceError, match="while running a batch of 2"):
        use(tensorrt)
    assert not tensorrt.cuda.ledger


def test_engine_sessions_share_no_memory(machine):
    tensorrt = machine()
    with open_it(tensorrt) as first, open_it(tensorrt) as second:
        tickets = [first.submit(IMAGES), second.submit(IMAGES[::-1])]
        assert first.collect(tickets[0]) == means(IMAGES)
        assert second.collect(tickets[1]) == means(IMAGES[::-1])
    assert not tensorrt.cuda.ledger


def build_and_open(flavour, graph, precision, preprocessing, profile, cache=None):
    """Build an engine for this machine's GPU and open it."""
    from deploykit.engine.build import engine_from_onnx
    from deploykit.engine.flavour import open_flavour

    if importlib.util.find_spec(flavour) is None:
        pytest.skip(f"{flavour} is not installed")
    tensorrt = open_flavour(flavour)
    built = engine_from_onnx(tensorrt, graph, profile=profile, targets=("current",))
    return open_engine(
        tensorrt,
        built.plan,
        name="engines/gpu.engine",
        precision=precision,
        profile=profile,
        preprocessing=preprocessing,
        labels=LABELS,
        cache=cache,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_engine_session_on_a_gpu_answers_as_cpu(
    small_graphs, small_preprocessing, flavour, precision
):
    profile = Profile(min_batch=1, opt_batch=4, max_batch=8)
    with (
        open_on("onnxruntime-cpu", small_graphs, "fp32", small_preprocessing) as reference,
        build_and_open(
            flavour, small_graphs[precision], precision, small_preprocessing, profile
        ) as session,
    ):
        for count in (1, 4, 8, 8, 8, 8, 3, 8, 8, 8):
            images = random_images(count, small_preprocessing)
            error = relative_error(session.run(images), reference.run(images))
            assert error < ERROR_LIMIT[precision]


@pytest.mark.gpu
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_engine_session_on_a_gpu_with_two_batches(small_graphs, small_preprocessing, flavour):
    batches = [random_images(8, small_preprocessing)[i:] for i in (0, 1, 0, 0, 2, 0)]
    with build_and_open(
        flavour, small_graphs["fp16"], "fp16", small_preprocessing, Profile(max_batch=8)
    ) as session:
        alone = [session.run(images) for images in batches]
        waiting = session.submit(batches[0])
        for i, images in enumerate(batches[1:]):
            following = session.submit(images)
            np.testing.assert_allclose(session.collect(waiting), alone[i], rtol=1e-3, atol=1e-3)
            waiting = following
        np.testing.assert_allclose(session.collect(waiting), alone[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_kernel_cache_on_a_gpu(small_graphs, small_preprocessing, tmp_path):
    images = random_images(8, small_preprocessing)
    cache = tmp_path / "gpu.engine.runtime"
    answers = []
    for _ in range(2):
        with build_and_open(
            "tensorrt_rtx",
            small_graphs["fp16"],
            "fp16",
            small_preprocessing,
            Profile(max_batch=8),
            cache,
        ) as session:
            answers.append(session.run(images))
        assert cache.stat().st_size > 0
    assert relative_error(answers[1], answers[0]) < ERROR_LIMIT["fp16"]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_engine_session_of_dpn92_answers_as_cpu(tmp_path, flavour):
    import torch

    from deploykit.models.registry import resolve_architecture

    architecture = resolve_architecture("dpn92", allow_user_code=False)
    torch.manual_seed(0)
    preprocessing = architecture.preprocessing
    module = architecture.build(len(LABELS)).eval()
    graphs = write_deploy_graphs(module, preprocessing, tmp_path)
    with (
        open_on("onnxruntime-cpu", graphs, "fp32", preprocessing) as reference,
        build_and_open(flavour, graphs["fp16"], "fp16", preprocessing, Profile()) as session,
    ):
        for count in (1, 8, 8, 8, 32, 5):
            images = random_images(count, preprocessing)
            error = relative_error(session.run(images), reference.run(images))
            assert error < ERROR_LIMIT["fp16"]
