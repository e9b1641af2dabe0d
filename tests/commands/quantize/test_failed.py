"""A graph that fails is kept beside its bundle, and the node at fault is named."""

import json
import shutil

import numpy as np
import pytest
from bundle_files import contents
from fp16_networks import BRIGHT, DIM, make_photos, tune_fp16, write_photo

from deploykit.bundle.folder import INT8_TENSORRT_GRAPH, find_bundle
from deploykit.commands.app import run
from deploykit.commands.quantize import int8
from deploykit.commands.quantize.request import QuantizeRequest
from deploykit.commands.quantize.run import quantization_images, quantize_bundle
from deploykit.errors import BundleError, ParityError
from deploykit.proof import extremes
from deploykit.system.progress import silent


def failure(bundle, request):
    """The error of a call that fails, the folder of what it made, and the last lines."""
    before = contents(bundle)
    with pytest.raises(ParityError) as caught:
        quantize_bundle(bundle, request)
    assert contents(bundle) == before
    folder = bundle.folder.with_name(".failed") / bundle.name
    lines = caught.value.message.splitlines()
    assert lines[-1] == f"What failed is kept in {folder}, which is no bundle."
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    return caught.value, files, lines


@pytest.fixture
def clipped_scale(monkeypatch):
    """Let the calibration see a hundredth of what the last layer reads."""
    convert = int8.ranges_of

    def clipped(seen, method):
        ranges = convert(seen, method)
        low, high = ranges["mean"]
        return {**ranges, "mean": (low / 100, high / 100)}

    monkeypatch.setattr(int8, "ranges_of", clipped)


def test_fp16_failed_where_no_tensor_fits(toy):
    bundle = toy("Loud")  # activations far beyond 65504
    error, files, lines = failure(bundle, QuantizeRequest("fp16"))
    assert files == {"deploy/fp16.onnx", "deploy/fp32.onnx"}
    assert "logits are NaN or infinite" in lines[0]
    assert "FP16 passes only with every node in FP32" in lines[0]
    assert "the first node with too large an error is node_mul (Mul): " in lines[-2]
    assert "of its values are NaN or infinite" in lines[-2]
    assert "Stay with FP32" in error.hint


def test_fp16_failed_names_the_overflowing_layer(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(extremes, "extreme_images", lambda size: {})  # which would show it
    bundle = tune_fp16(toy("Overflow")).bundle  # which has a graph that passed, and keeps it
    folder = make_photos(tmp_path / "photos", DIM)
    _, proof = quantization_images(bundle, "fp16", folder, silent)
    rng = np.random.default_rng(1)
    for name in [name for names, _ in proof for name in names]:
        write_photo(folder / name, {"blue": 2, "green": 1, "red": 0}[name[:-7]], BRIGHT, rng)
    error, files, lines = failure(bundle, QuantizeRequest("fp16", folder))
    assert lines[0].endswith("but not on others:")
    assert "--images" in error.hint
    assert files == {"deploy/fp16.onnx", "deploy/fp32.onnx"}
    assert "(Conv of middle.1)" in lines[-2]
    assert "of its values are NaN or infinite" in lines[-2]


def test_fp16_failed_names_the_cancelling_node(toy):
    request = QuantizeRequest("fp16", search_seconds=0)
    _, _, lines = failure(toy("SensitiveSum"), request)
    assert (
        "no node alone adds too much: it adds up, most at node_sub_3 (Sub of middle.1), from "
        in (lines[-2])
    )


@pytest.mark.parametrize("graph", ["deploy/int8.onnx", INT8_TENSORRT_GRAPH])
def test_int8_failed_with_a_clipped_scale(toy, clipped_scale, graph):
    request = QuantizeRequest(search_seconds=0, runtime="onnxruntime-cpu", graphs=(graph,))
    error, files, lines = failure(toy("Colours"), request)
    assert "images changed their class" in lines[0]
    assert "In 0 s the search tried 2 graphs." in lines[0]
    assert "--search-seconds" in error.hint
    assert files == {graph, "deploy/fp32.onnx"}
    assert f"Diagnosis of {graph} against fp32.onnx: " in lines[-2]
    assert "(Gemm of head): the error is " in lines[-2]


def test_quantize_failed_keeps_only_the_last(toy):
    bundle = toy("Loud")
    request = QuantizeRequest("fp16", diagnose=False)
    _, _, lines = failure(bundle, request)
    assert not any("iagnosis" in line for line in lines)
    home = bundle.folder.parent
    (home / ".failed" / bundle.name / "old.txt").touch()
    _, files, _ = failure(bundle, request)
    assert "old.txt" not in files
    assert find_bundle(None, home).folder == bundle.folder
    with pytest.raises(BundleError, match="is not a bundle"):
        find_bundle(f".failed/{bundle.name}", home)
    shutil.rmtree(bundle.folder)
    for place in (home, home / ".failed"):
        with pytest.raises(BundleError, match="There is no bundle"):
            find_bundle(None, place)


@pytest.mark.parametrize("command", ["quantize", "build-trt"])
@pytest.mark.parametrize("option", [[], ["--no-diagnose"]])
def test_quantize_failed_as_json(toy, capsys, request, command, option):
    if command == "build-trt":
        request.getfixturevalue("rtx")
        request.getfixturevalue("no_gpu")
    bundle = toy("Loud")
    words = [command, "--bundle", str(bundle.folder), "--precision", "fp16", "--json", *option]
    assert run(words) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert ".failed" in error["message"]
    assert ("node_mul (Mul)" in error["message"]) == (option == [])
