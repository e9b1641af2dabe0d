"""INT8 engines, built for real from the graph that is made for TensorRT."""

from dataclasses import replace

import pytest
from fp16_networks import BRIGHT, DIM, make_photos

from deploykit.bundle.folder import INT8_TENSORRT_GRAPH
from deploykit.commands.build.run import BuildRequest, build_engine
from deploykit.commands.build.text import build_text, build_value
from deploykit.commands.quantize.request import QuantizeRequest
from deploykit.commands.quantize.run import quantize_bundle
from deploykit.commands.quantize.text import quantization_text, quantization_value
from deploykit.engine.passport import read_passport
from deploykit.errors import DeviceError, ParityError
from deploykit.proof.answered import AnsweredImages
from deploykit.proof.auto import open_best
from deploykit.system.progress import Note

pytestmark = pytest.mark.usefixtures("rtx", "no_gpu")
INT8 = BuildRequest(precision="int8", targets=("sm89",))


def test_build_engine_int8_makes_its_graph_first(toy):
    result = build_engine(toy("Outliers"), INT8)
    passport = read_passport(result.bundle.folder / f"{result.engine}.json")
    assert (passport.precision, passport.deploy_graph) == ("int8", INT8_TENSORRT_GRAPH)
    assert (passport.proof.kind, passport.proof.runtime) == ("rehearsed", "rehearsal")
    assert [kept.module for kept in passport.kept] == ["middle.1"]
    assert passport.kept == result.bundle.manifest.kept_in(INT8_TENSORRT_GRAPH)
    assert (result.bundle.folder / result.engine).stat().st_size == passport.engine_bytes
    manifest = result.bundle.manifest
    assert "deploy/int8.onnx" not in manifest.files
    assert manifest.searches[result.engine] == manifest.searches[INT8_TENSORRT_GRAPH]
    with pytest.raises(DeviceError):  # the engine is INT8's only form, and it wants a GPU
        open_best(result.bundle, precision="int8")
    assert "none of them can be spared" in build_text(result)
    assert build_value(result)["tuning"]["searched_images"] == 22


def test_build_engine_int8_from_a_proven_graph(toy):
    quantized = quantize_bundle(toy("Colours"))
    result = build_engine(quantized.bundle, INT8)
    assert result.tuning is None
    assert result.passport.proof == quantized.graphs[1].proof


def test_quantize_lists_outdated_engines(toy, tmp_path):
    built = build_engine(toy("Outliers"), INT8)
    dim = QuantizeRequest(images=make_photos(tmp_path / "dim", DIM))
    quantized = quantize_bundle(built.bundle, dim)
    assert [engine.file for engine in quantized.outdated] == [built.engine]
    assert (
        f"OUTDATED {built.engine} was built from an earlier {INT8_TENSORRT_GRAPH} and runs no "
        "longer; to build it again:\n"
        "deploykit build-trt --flavour tensorrt_rtx --target sm89 --precision int8"
    ) in quantization_text(quantized)
    assert quantization_value(quantized)["outdated"] == [built.engine]
    assert quantize_bundle(quantized.bundle, dim).outdated == ()  # it was useless before
    again = build_engine(quantized.bundle, INT8)
    bright = make_photos(tmp_path / "bright", BRIGHT)
    other = build_engine(again.bundle, replace(INT8, targets=("sm86",), images=bright))
    assert [engine.file for engine in other.outdated] == [again.engine]


def test_build_engine_int8_from_a_damaged_graph(toy):
    bundle, notes = quantize_bundle(toy("Colours")).bundle, []
    (bundle.folder / INT8_TENSORRT_GRAPH).write_bytes(b"damaged")
    result = build_engine(bundle, INT8, notes.append)
    assert result.tuning is not None
    told = f"{INT8_TENSORRT_GRAPH} is missing or damaged: it is made again"
    assert told in [note.message for note in notes if isinstance(note, Note)]


def test_build_engine_int8_warns_of_few_images(toy, tmp_path):
    few, notes = make_photos(tmp_path / "few", BRIGHT, count=1), []
    request = replace(INT8, images=few)
    result = build_engine(toy("Colours"), request, notes.append)
    weak = "UNPROVEN: what is made will be compared on 2 photos"
    assert any(weak in note.message for note in notes if isinstance(note, Note))
    assert (
        f"UNPROVEN  {INT8_TENSORRT_GRAPH} on rehearsal: its proof is on 2 photos; "
        in build_text(result)
    )


def test_build_engine_int8_from_a_failed_graph(toy, monkeypatch):
    judge = AnsweredImages.judge

    def refuse(photos, candidate, *arguments):
        verdict = judge(photos, candidate, *arguments)
        return verdict.refused("for the test") if len(photos.logits) == 23 else verdict

    monkeypatch.setattr(AnsweredImages, "judge", refuse)
    bundle = toy("Colours")
    with pytest.raises(
        ParityError, match=r"int8-tensorrt\.onnx passes on the photos of the search"
    ):
        build_engine(bundle, INT8)
    assert not (bundle.folder / "engines").exists()
