"""INT8 engines, built for real from the graph that is made for TensorRT."""

import pytest

from deploykit.bundle import INT8_TENSORRT_GRAPH
from deploykit.engine.passport import read_passport
from deploykit.errors import DeviceError, ParityError
from deploykit.jobs.build import BuildRequest, build_engine
from deploykit.jobs.choose import open_best
from deploykit.jobs.quantize import quantize_bundle
from deploykit.report.engines import build_text, build_value

pytestmark = pytest.mark.usefixtures("rtx", "no_gpu")
INT8 = BuildRequest(precision="int8", targets=("sm89",))


def test_an_int8_engine_makes_its_graph_first(toy):
    result = build_engine(toy("Outliers"), INT8)
    passport = read_passport(result.bundle.folder / f"{result.engine}.json")
    assert (passport.precision, passport.deploy_graph) == ("int8", INT8_TENSORRT_GRAPH)
    assert (passport.proof.kind, passport.proof.runtime) == ("rehearsed", "rehearsal")
    assert [kept.module for kept in passport.kept] == ["middle.1"]
    assert passport.kept == result.bundle.manifest.kept_for_tensorrt
    assert (result.bundle.folder / result.engine).stat().st_size == passport.engine_bytes
    manifest = result.bundle.manifest
    assert "deploy/int8.onnx" not in manifest.files
    assert manifest.searches[result.engine] == manifest.searches[INT8_TENSORRT_GRAPH]
    with pytest.raises(DeviceError):  # the engine is INT8's only form, and it wants a GPU
        open_best(result.bundle, precision="int8")
    assert "none of them can be spared" in build_text(result)
    assert build_value(result)["tuning"]["searched_photos"] == 22


def test_a_proven_graph_is_taken_as_it_is(toy):
    quantized = quantize_bundle(toy("Colours"))
    result = build_engine(quantized.bundle, INT8)
    assert result.tuning is None
    assert result.passport.proof == quantized.graphs[1].proof


def test_a_graph_that_does_not_pass_becomes_no_engine(toy, monkeypatch):
    def refuse(scheme, *arguments):
        raise ParityError(f"{scheme.graph} fails")

    monkeypatch.setattr("deploykit.jobs.quantize.prove_graph", refuse)
    bundle = toy("Colours")
    with pytest.raises(ParityError, match=r"int8-tensorrt\.onnx fails"):
        build_engine(bundle, INT8)
    assert not (bundle.folder / "engines").exists()
