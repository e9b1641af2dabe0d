"""What the engine inspector tells, as NVIDIA's documentation shows it; no GPU here to ask one."""

import json
from collections import Counter

import pytest

from deploykit.engine.audit import Audit, audit_engine, layer_precisions
from deploykit.engine.passport import COMPUTE_CAPABILITIES
from deploykit.errors import DeviceError
from deploykit.specs.engine import Profile
from deploykit.specs.model import TensorSpec
from deploykit.system.gpu import need_gpu


def layer(kind, *types, weights=None):
    """A layer as detailed profiling verbosity shows it."""
    tensors = [
        {"Name": "out", "Location": "Device", "Dimensions": [8, 2], "Format/Datatype": each}
        for each in types
    ]
    described = {"Name": "layer", "LayerType": kind, "Inputs": [], "Outputs": tensors}
    return described if weights is None else described | {"Weights": weights}


def told(*layers):
    return json.dumps({"Layers": layers, "Bindings": ["images", "logits"]})


@pytest.mark.parametrize(
    ("spelled", "precision"),
    [
        ("Half", "fp16"),
        ("Half(64,1:8)", "fp16"),
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Float", "fp32"),
        ("Row major linear FP32", "fp32"),
        ("BFloat16", "bf16"),
        ("Row major linear BF16", "bf16"),
        ("FP8", "fp8"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major linear UInt8", "integer"),
        ("Int32", "integer"),
        ("N/A due to dynamic shapes", "unknown"),
        ("Unknown format", "unknown"),
    ],
)
def test_layer_precisions_by_output_type(spelled, precision):
    assert layer_precisions(told(layer("kgen", spelled))) == {precision: 1}


def test_layer_precisions_prefer_weights():
    """A convolution whose logits are cast to FP32 in the same kernel computes in FP16."""
    half = {"Type": "Half", "Count": 1728}
    assert layer_precisions(told(layer("CaskConvolution", "Float", weights=half))) == {"fp16": 1}
    unknown = layer("CaskConvolution", "N/A due to dynamic shapes", weights=half)
    assert layer_precisions(told(unknown)) == {"fp16": 1}
    assert layer_precisions(told(layer("kgen", "Half", weights="inline"))) == {"fp16": 1}


def test_layer_precisions_skip_data_movement():
    layers = [layer(kind, "Half") for kind in ("Reformat", "NoOp", "Shuffle", "Constant", "Slice")]
    assert layer_precisions(told(*layers, layer("kgen", "Float"))) == {"fp32": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("no JSON", {}),
        ("[]", {}),
        ('{"layers": []}', {}),
        (told("conv1 + relu1", "fc"), {"unknown": 2}),
        (told({"Name": "without a type"}), {"unknown": 1}),
        (told({"LayerType": 7}), {}),
    ],
)
def test_layer_precisions_of_unknown_text(text, expected):
    assert layer_precisions(text) == expected


def test_audit_reason_with_layers_in_precision():
    assert Audit(Counter(fp16=1, fp32=99)).reason("fp16") is None
    assert Audit(Counter(fp32=3)).reason("fp32") is None


def test_audit_reason_without_fp16_layer():
    assert Audit(Counter(fp32=5, unknown=1)).reason("fp16") == (
        "none of the engine's computing layers is in fp16: 5 in fp32, 1 in unknown"
    )


@pytest.mark.parametrize("layers", [Counter(), Counter(unknown=4)])
def test_audit_reason_of_unknown_layers(layers):
    audit = Audit(layers)
    assert not audit.tells
    assert audit.reason("fp16") is None


class Engine:
    """An engine whose inspector gives a text, in the few words that the audit needs."""

    def __init__(self, trt, text):
        self._trt, self._text = trt, text
        self.shapes = {}

    def create_execution_context(self):
        return self

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return shape[0] > 0

    def create_engine_inspector(self):
        return self

    def get_engine_information(self, layout):
        assert layout == self._trt.LayerInformationFormat.JSON
        assert self.execution_context is self
        return self._text


IMAGES = TensorSpec(name="images", dtype="uint8", shape=("N", 8, 8, 3))


def audit(rtx, plan=b"plan"):
    return audit_engine(rtx, plan, inputs=(IMAGES,), profile=Profile(opt_batch=4))


@pytest.fixture
def engine_that_tells(rtx, monkeypatch):
    def install(text):
        engine = Engine(rtx.trt, text)

        class Runtime:
            def __init__(self, log):
                assert log is rtx.log

            def deserialize_cuda_engine(self, plan):
                return engine

        monkeypatch.setattr(rtx.trt, "Runtime", Runtime)
        return engine

    return install


def test_audit_engine_asks_for_optimal_batch(rtx, engine_that_tells):
    engine = engine_that_tells(told(layer("gemm", "Half"), layer("kgen", "Float")))
    assert audit(rtx).layers == {"fp16": 1, "fp32": 1}
    assert engine.shapes == {"images": (4, 8, 8, 3)}


def test_audit_engine_without_runtime(rtx, monkeypatch):
    def fail(log):
        log.log(rtx.trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(rtx.trt, "Runtime", fail)
    with pytest.raises(DeviceError, match=r"makes no runtime:\nCUDA init.* error: 35") as caught:
        audit(rtx)
    assert ": deploykit doctor" in caught.value.hint


def test_audit_engine_without_inspector(rtx, engine_that_tells):
    engine_that_tells("").create_engine_inspector = lambda: None
    with pytest.raises(DeviceError, match="makes no inspector") as caught:
        audit(rtx)
    assert caught.value.message.endswith("inspector.")
    assert ": deploykit doctor" in caught.value.hint


def test_audit_engine_of_an_unreadable_plan(rtx):
    with pytest.raises(DeviceError, match="TRT engine file") as caught:
        audit(rtx, b"no engine" * 20)
    assert "deploykit build-trt" in caught.value.hint


@pytest.mark.gpu
def test_audit_engine_on_a_gpu_has_fp16_layers(rtx, build):
    gpu = need_gpu()
    if gpu.target not in COMPUTE_CAPABILITIES:
        pytest.skip(f"TensorRT for RTX does not list {gpu.name} ({gpu.target})")
    audit = audit_engine(rtx, build(targets=("current",)).plan, inputs=(IMAGES,), profile=Profile())
    assert audit.layers["fp16"]
