import numpy as np
import onnx_ir as ir
import pytest

from deploykit.errors import DeviceError, GraphError
from deploykit.runtime._onnxruntime import open_onnx
from deploykit.runtime.opener import node_milliseconds, open_probe

GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
net (float[N, 2] left, bool[N, 2] choice) => (float[N, 2] sum, float16[N, 2] half)
<float[2] w = {1, 2}> {
    added = Add(left, w)
    sum = Where(choice, added, left)
    half = Cast<to = 10>(sum)
}"""
FEEDS = {
    "left": np.array([[1, 2], [3, 4]], np.float32),
    "choice": np.array([[True, False], [True, True]]),
}


@pytest.fixture
def content():
    return ir.to_proto(ir.from_onnx_text(GRAPH)).SerializeToString()


def test_probe_gives_all_outputs_by_name(content):
    with open_probe(content, threads=1) as probe:
        found = probe.run(FEEDS)
    assert list(found) == ["sum", "half"]
    assert found["sum"].tolist() == [[2, 2], [4, 6]]
    assert found["half"].dtype == np.float16


def test_probe_of_a_file(content, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(content)
    with open_probe(tmp_path / "graph.onnx") as probe:
        assert probe.run(FEEDS)["sum"].tolist() == [[2, 2], [4, 6]]


def test_probe_outputs_are_copies(content):
    with open_probe(content) as probe:
        first = probe.run(FEEDS)["sum"]
        probe.run({**FEEDS, "left": FEEDS["left"] + 10})
        assert first.tolist() == [[2, 2], [4, 6]]


@pytest.mark.parametrize(
    "feeds",
    [
        {"left": FEEDS["left"]},
        {**FEEDS, "left": FEEDS["left"].astype(np.float64)},
        {**FEEDS, "left": FEEDS["left"][:, :1]},
        {**FEEDS, "more": FEEDS["left"]},
    ],
    ids=["missing", "type", "shape", "unknown"],
)
def test_probe_refuses_unsuitable_feeds(content, feeds):
    with open_probe(content) as probe, pytest.raises(GraphError, match=r"failed on left \(2, "):
        probe.run(feeds)


def test_probe_of_what_is_no_graph(tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"not a graph")
    for graph in (tmp_path / "graph.onnx", b"not a graph", tmp_path / "nowhere.onnx"):
        with pytest.raises(GraphError, match="cannot read"):
            open_probe(graph)


def test_probe_closed_does_not_run(content):
    probe = open_probe(content)
    probe.close()
    probe.close()
    with pytest.raises(RuntimeError, match="closed"):
        probe.run(FEEDS)


def test_probe_fp32_on_gpu_is_without_tf32(content, monkeypatch, rtx_4070):
    asked = {}

    def open_on_cpu(graph, name, threads, *, cuda, tf32=False):
        asked.update(precision=cuda, tf32=tf32)
        return open_onnx(graph, name, threads)

    monkeypatch.setattr("deploykit.runtime._onnxruntime.open_onnx", open_on_cpu)
    with open_probe(content, cuda="fp32"):
        assert asked == {"precision": "fp32", "tf32": False}


def test_probe_without_gpu(content, no_gpu):
    with pytest.raises(DeviceError):
        open_probe(content, cuda="fp16")


def test_node_milliseconds_by_name(content, tmp_path, monkeypatch):
    """Nothing is fused, and nothing left behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = """<ir_version: 10, opset_import: ["" : 20]>
    net (float[512, 512] left) => (float[512, 512] rectified) {
        [sum] added = Add(left, left)
        [product] multiplied = MatMul(added, left)
        [act] rectified = Relu(multiplied)
    }"""
    graph = ir.to_proto(ir.from_onnx_text(text)).SerializeToString()
    found = node_milliseconds(graph, {"left": np.ones((512, 512), np.float32)}, runs=5)
    assert list(found) == ["sum", "product", "act"]
    assert min(found.values()) > 0
    with pytest.raises(GraphError, match="does not run the graph"):
        node_milliseconds(content, {"left": FEEDS["left"]})
    assert [*tmp_path.iterdir()] == []
