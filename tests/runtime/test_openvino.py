"""OpenVINO, which computes these tests on this machine's CPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from openvino_cpu import needs_bf16
from openvino_sessions import graph_bytes, open_file, open_text, quantize
from runtime_graphs import (
    ERROR_LIMIT,
    LABELS,
    open_on,
    random_images,
    relative_error,
    small_network,
)

from deploykit.errors import DependencyError, DeviceError, GraphError
from deploykit.graph.export import onnx_from_module
from deploykit.graph.files import save_graph
from deploykit.runtime import _openvino
from deploykit.runtime._base import normalised
from deploykit.runtime._openvino import OPENVINO_ERRORS
from deploykit.runtime.opener import open_graph
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import PipelinedSession

PREPROCESSING = Preprocessing(resize=(4, 5), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CANONICAL = """
net (float[N, 3, 4, 5] input) => (float[N, 3] logits) <int64[2] axes = {2, 3}> {
    logits = ReduceMean<keepdims = 0>(input, axes)
}"""
DEPLOY = """
net (uint8[N, 4, 5, 3] images) => (float[N, 3] logits) <int64[2] axes = {1, 2}> {
    values = Cast<to = 1>(images)
    logits = ReduceMean<keepdims = 0>(values, axes)
}"""
PASSED_ON = DEPLOY.replace("logits = Reduce", "a = Reduce").replace(
    "axes)", "axes)\n    logits = Identity(a)"
)
WIRED = """
net (uint8[4, 4, 5, 3] images) => (float[4, 3] logits)
<int64[2] axes = {1, 2}, int64[2] shape = {4, 3}> {
    values = Cast<to = 1>(images)
    means = ReduceMean<keepdims = 0>(values, axes)
    logits = Reshape(means, shape)
}"""
FOREIGN = "net (uint8[N, 4, 5, 3] images) => (float[N, 3] logits) { logits = odd.Thing(images) }"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
MEANS = IMAGES.mean((1, 2))


@pytest.fixture
def fp32(small_graphs, small_preprocessing):
    with open_file(small_graphs["fp32"], small_preprocessing) as session:
        yield session


@pytest.fixture(scope="session")
def int8_graph(small_graphs, small_preprocessing):
    path = small_graphs["fp32"].with_name("int8.onnx")
    quantize(small_graphs["fp32"], path, random_images(8, small_preprocessing))
    return path


@pytest.fixture(scope="session")
def int8_canonical(tmp_path_factory, small_preprocessing):
    folder = tmp_path_factory.mktemp("canonical")
    graph, quantized = folder / "fp32.onnx", folder / "int8.onnx"
    model = onnx_from_module(small_network(), small_preprocessing.input_size)
    save_graph(model, graph, labels=LABELS, preprocessing=small_preprocessing)
    images = normalised(random_images(8, small_preprocessing), small_preprocessing)
    quantize(graph, quantized, images, name="input")
    return quantized


def test_openvino_answers_as_onnx_runtime(fp32, small_graphs, small_preprocessing):
    """Which it would not in BF16, the precision that it takes by itself where the CPU has it."""
    reference = open_on("onnxruntime-cpu", small_graphs, "fp32", small_preprocessing)
    for count in (1, 2, 5, 1, 9):
        images = random_images(count, small_preprocessing)
        logits = fp32.run(images)
        assert logits.dtype == np.float32
        assert relative_error(logits, reference.run(images)) < ERROR_LIMIT["fp32"]


@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_answers_in_any_batch(small_graphs, small_preprocessing, threads):
    images = random_images(5, small_preprocessing)
    with open_file(
        small_graphs["fp32"], small_preprocessing, threads=threads, pipelined=True
    ) as session:
        whole = session.run(images)
        for i in range(len(images)):
            assert np.array_equal(session.run(images[i : i + 1]), whole[i : i + 1])


def test_openvino_spec(fp32, small_preprocessing):
    spec = fp32.spec
    assert (spec.runtime, spec.graph, spec.precision) == ("openvino", "deploy/fp32.onnx", "fp32")
    assert (spec.device, spec.input_size, spec.classes) == ("CPU", (32, 40), 5)
    assert (spec.largest_batch, spec.concurrent) == (None, False)
    assert isinstance(fp32, PipelinedSession)


@needs_bf16
def test_openvino_bf16_of_the_fp32_graph(fp32, small_graphs, small_preprocessing):
    images = random_images(4, small_preprocessing)
    with open_file(small_graphs["fp32"], small_preprocessing, precision="bf16") as session:
        error = relative_error(session.run(images), fp32.run(images))
    assert ERROR_LIMIT["fp32"] < error < 0.05
    assert (session.spec.precision, session.spec.graph) == ("bf16", "deploy/fp32.onnx")
    assert "bf16" in session.spec.device


@needs_bf16
def test_openvino_refuses_bf16_without_such_a_layer():
    with pytest.raises(DeviceError, match=r"not compute graph.onnx in bf16 .* by any layer"):
        open_text(DEPLOY, PREPROCESSING, precision="bf16")


def test_openvino_refuses_bf16_on_other_cpus(monkeypatch, small_graphs, small_preprocessing):
    class OldCpu:
        def get_property(self, device, key):
            return ["FP32", "INT8"]

    monkeypatch.setattr(_openvino.ov, "Core", OldCpu)
    with pytest.raises(DeviceError, match=r"not compute in bf16 .* does in FP32, INT8") as caught:
        open_file(small_graphs["fp32"], small_preprocessing, precision="bf16")
    assert "--precision fp32" in caught.value.hint


def test_openvino_that_does_not_start_is_refused(monkeypatch, small_graphs, small_preprocessing):
    def fail():
        raise RuntimeError("no plugins.xml")

    monkeypatch.setattr(_openvino.ov, "Core", fail)
    with pytest.raises(DeviceError, match=r"does not start on this CPU: no plugins.xml"):
        open_file(small_graphs["fp32"], small_preprocessing)


@needs_bf16
@pytest.mark.parametrize(("asked", "computed"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_openvino_hint_not_taken_is_an_error(
    monkeypatch, small_graphs, small_preprocessing, asked, computed
):
    arithmetic = _openvino._ARITHMETIC
    other = arithmetic[asked]._replace(hint=arithmetic[computed].hint)
    monkeypatch.setitem(arithmetic, asked, other)
    with pytest.raises(DeviceError, match=f"would not compute deploy/fp32.onnx in {asked}"):
        open_file(small_graphs["fp32"], small_preprocessing, precision=asked)


def test_openvino_int8_of_a_qdq_graph(fp32, int8_graph, small_preprocessing):
    images = random_images(4, small_preprocessing)
    with open_file(int8_graph, small_preprocessing, precision="int8") as session:
        error = relative_error(session.run(images), fp32.run(images))
    assert ERROR_LIMIT["fp32"] < error < 0.1
    assert session.spec.device.startswith("CPU (")


@pytest.mark.parametrize("wrong", [1, 2, 100])
def test_openvino_int8_with_wrong_weights_is_compiled_again(
    wrong, monkeypatch, int8_graph, small_preprocessing
):
    """OpenVINO 2026.4 may take other weights where streams share them."""
    images = random_images(4, small_preprocessing)
    compiled, asked = _openvino.OpenVinoSession._compiled, []

    class OtherWeights(_openvino._Requests):
        def finish(self, requests):
            return super().finish(requests)[:, ::-1]

    def sometimes(session, at_once):
        asked.append(at_once)
        requests = compiled(session, at_once)
        if at_once > 1 and asked.count(at_once) <= wrong:
            requests = OtherWeights(requests._compiled)
        return requests

    with open_file(int8_graph, small_preprocessing, precision="int8", threads=1) as session:
        right = session.run(images)
    monkeypatch.setattr(_openvino.OpenVinoSession, "_compiled", sometimes)
    options = {"precision": "int8", "threads": 2, "pipelined": True}
    with open_file(int8_graph, small_preprocessing, **options) as session:
        np.testing.assert_allclose(session.run(images), right, rtol=1e-5)
        assert set(session._requests) == {2}
    assert asked == [1, *[2] * min(wrong + 1, 5)]


def test_openvino_int8_of_a_canonical_graph(int8_canonical, small_preprocessing):
    """Whose streams are compared on images that are normalised, as all that it takes."""
    images = random_images(4, small_preprocessing)
    options = {"precision": "int8", "pipelined": True}
    with (
        open_file(int8_canonical, small_preprocessing, threads=1, **options) as alone,
        open_file(int8_canonical, small_preprocessing, threads=2, **options) as session,
    ):
        np.testing.assert_allclose(session.run(images), alone.run(images), rtol=1e-5)


@pytest.mark.parametrize("step", ["start", "finish"])
def test_openvino_int8_that_fails_while_it_is_compared(
    step, monkeypatch, int8_graph, small_preprocessing
):
    def fail(requests, images):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(_openvino._Requests, step, fail)
    with pytest.raises(GraphError, match=r"failed on openvino with a batch of 4: out of memory"):
        open_file(int8_graph, small_preprocessing, precision="int8", threads=2, pipelined=True)


def test_openvino_int8_of_an_fp32_graph(small_graphs, small_preprocessing):
    with pytest.raises(DeviceError, match=r"would not compute .* in int8 on this CPU, but in f32"):
        open_file(small_graphs["fp32"], small_preprocessing, precision="int8")


def test_openvino_normalises_for_the_canonical_graph():
    mean, std = np.array(PREPROCESSING.mean), np.array(PREPROCESSING.std)
    expected = ((IMAGES / 255 - mean) / std).mean((1, 2))
    with open_text(CANONICAL, PREPROCESSING) as session:
        assert session.run(IMAGES) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("text", [DEPLOY, PASSED_ON], ids=["plain", "passed on"])
def test_openvino_gives_bytes_to_the_deploy_graph(text):
    with open_text(text, PREPROCESSING) as session:
        assert session.run(IMAGES) == pytest.approx(MEANS, rel=1e-6)
        assert session.run(IMAGES[::-1]) == pytest.approx(MEANS[::-1], rel=1e-6)


def test_openvino_collects_batches_in_any_order():
    batches = [np.roll(IMAGES, step, axis=3) for step in range(4)]
    with open_text(DEPLOY, PREPROCESSING, threads=2, pipelined=True) as session:
        buffer = np.empty_like(IMAGES)
        tickets = []
        for batch in batches:
            buffer[:] = batch
            tickets.append(session.submit(buffer))
        buffer[:] = 0
        for ticket, batch in reversed(list(zip(tickets, batches, strict=True))):
            assert session.collect(ticket) == pytest.approx(batch.mean((1, 2)), rel=1e-6)
        with pytest.raises(RuntimeError, match="not in flight"):
            session.collect(tickets[0])


def test_openvino_logits_are_copies():
    with open_text(DEPLOY, PREPROCESSING) as session:
        first = session.run(IMAGES)
        kept = first.copy()
        session.run(IMAGES[::-1].copy())
    assert np.array_equal(first, kept)


def test_openvino_compiles_for_batch_and_threads():
    """Compiling for both takes time and memory: what nobody asks for is not compiled."""
    with open_text(DEPLOY, PREPROCESSING, threads=2) as session:
        session.run(IMAGES[:1])
        assert set(session._requests) == {1}
        session.run(IMAGES)
        assert set(session._requests) == {1, 2}
    with open_text(DEPLOY, PREPROCESSING, threads=2, pipelined=True) as session:
        session.run(IMAGES[:1])
        assert set(session._requests) == {2}


def test_openvino_thread_count():
    with open_text(DEPLOY, PREPROCESSING, threads=1) as session:
        (requests,) = session._requests.values()
    assert requests._compiled.get_property("INFERENCE_NUM_THREADS") == 1


SIGNAL = f"""
import signal, sys
sys.path[:0] = {sys.path!r}
from test_openvino import DEPLOY, PREPROCESSING
from openvino_sessions import open_text
came = []
signal.signal(signal.SIGINT, lambda *_: came.append(True))
first = open_text(DEPLOY, PREPROCESSING)
with open_text(DEPLOY, PREPROCESSING):
    first.close()
signal.raise_signal(signal.SIGINT)
assert came
"""


def test_openvino_sessions_that_end_in_any_order_leave_signals_alone():
    """With AMX the process ended with a segmentation fault at the first one that came later."""
    subprocess.run([sys.executable, "-c", SIGNAL], cwd=Path(__file__).parent, check=True)


def test_openvino_closed_session():
    session = open_text(DEPLOY, PREPROCESSING)
    ticket = session.submit(IMAGES)
    session.close()
    session.close()
    for use in (session.run, session.submit):
        with pytest.raises(RuntimeError, match="the session is closed"):
            use(IMAGES)
    with pytest.raises(RuntimeError, match="not in flight"):
        session.collect(ticket)


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08\x0a"])
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
def test_openvino_of_what_is_no_graph(tmp_path, capfd, content, as_file):
    graph = content
    if as_file:
        graph = tmp_path / "graph.onnx"
        graph.write_bytes(content)
    with pytest.raises(GraphError):
        open_graph(
            graph,
            name="graph.onnx",
            runtime="openvino",
            precision="fp32",
            preprocessing=PREPROCESSING,
            labels=Labels.numbered(3),
        )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEPLOY.replace("4, 5", "6, 6"), "not the graph that the manifest describes"),
        (DEPLOY.replace("logits", "scores"), "not the graph that the manifest describes"),
        (DEPLOY.replace("uint8", "int8"), "not the graph that the manifest describes"),
        (FOREIGN, "cannot read graph.onnx: .*odd.Thing"),
        (WIRED, "cannot compile graph.onnx for one image"),
    ],
    ids=["size", "name", "type", "operator", "wired batch"],
)
def test_openvino_refuses_a_foreign_graph(text, message):
    with pytest.raises(GraphError, match=f"(?s){message}"):
        open_text(text, PREPROCESSING)


@pytest.mark.parametrize(
    ("labels", "preprocessing"),
    [(Labels(names=(*"abcde",), source="test"), {}), (LABELS, {"mean": (0.1, 0.2, 0.3)})],
    ids=["labels", "preprocessing"],
)
def test_openvino_refuses_other_metadata(small_graphs, small_preprocessing, labels, preprocessing):
    other = Preprocessing(resize=small_preprocessing.resize, **preprocessing)
    with pytest.raises(GraphError, match="was exported with deploykit"):
        open_file(small_graphs["fp32"], other, labels=labels)


@pytest.mark.parametrize("method", ["start", "finish"])
def test_openvino_failure_while_running(monkeypatch, method):
    def fail(*_):
        raise RuntimeError("could not execute a primitive")

    with open_text(DEPLOY, PREPROCESSING) as session:
        monkeypatch.setattr(_openvino._Requests, method, fail)
        with pytest.raises(GraphError, match="with a batch of 3: could not execute"):
            session.run(IMAGES)


def test_openvino_errors_are_all_mapped():
    raised = {
        value
        for value in vars(_openvino.frontend).values()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert raised
    assert raised <= set(OPENVINO_ERRORS)


def test_openvino_not_installed(no_openvino):
    with pytest.raises(DependencyError, match="openvino is not installed") as caught:
        open_text(DEPLOY, PREPROCESSING)
    assert caught.value.hint == 'Install it: pip install "deploykit[openvino]"'


REPORTER = """
import pathlib, sys
pathlib.Path("told").touch()
raise ImportError("the makers are told")
"""
RUN = """
import pathlib, sys
import numpy as np
from deploykit.runtime.opener import open_graph
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Preprocessing

with open_graph(
    sys.stdin.buffer.read(),
    name="graph.onnx",
    runtime="openvino",
    precision="fp32",
    preprocessing=Preprocessing(resize=(4, 5)),
    labels=Labels.numbered(3),
) as session:
    session.run(np.zeros((3, 4, 5, 3), np.uint8))
assert "openvino_telemetry" not in sys.modules
import openvino
assert openvino.convert_model
"""


def test_openvino_sends_no_telemetry(tmp_path):
    reporter, home = tmp_path / "reporter", tmp_path / "home"
    reporter.mkdir()
    home.mkdir()
    (reporter / "openvino_telemetry.py").write_text(REPORTER, encoding="utf-8")
    search_path = [str(reporter), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [sys.executable, "-c", RUN],
        input=graph_bytes(DEPLOY),
        cwd=home,
        env={
            **os.environ,
            "HOME": str(home),
            "USERPROFILE": str(home),
            "PYTHONPATH": os.pathsep.join(search_path),
        },
        check=True,
    )
    assert [*home.iterdir()] == []
