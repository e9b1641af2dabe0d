"""The order in which auto tries what a bundle has."""

import msgspec
import pytest
from bundle_files import edited

from deploykit.bundle.manifest import SearchRecord
from deploykit.proof.auto import by_preference
from deploykit.specs.model import KeptNode
from deploykit.system.progress import silent

FP32, INT8 = "deploy/fp32.onnx", "deploy/int8.onnx"
BF16, INT8_THERE = ("openvino", "bf16"), ("openvino", "int8")
INT8_HERE = ("onnxruntime-cpu", "int8")


@pytest.fixture
def order(bundle):
    """The runtimes and precisions of the CPU, in the order for a bundle with such an INT8 graph."""

    def of(kept, integers, made_for="openvino"):
        node = KeptNode(node="n", operator="Conv", module="", reason="")
        nodes = tuple(msgspec.structs.replace(node, node=str(i)) for i in range(kept))
        manifest = bundle.manifest
        quantized = edited(
            bundle,
            deploy={"fp32": FP32, "int8": INT8},
            files={**manifest.files, INT8: manifest.files[FP32]},
            searches={INT8: SearchRecord(made_for, (), nodes, integers)},
        )
        found = by_preference(quantized, None, silent)
        host = ("openvino", "onnxruntime-cpu")
        return [(each.runtime, each.precision) for each in found if each.runtime in host]

    return of


def test_preference_int8_before_bf16(order):
    assert order(kept=0, integers=131)[:2] == [INT8_THERE, BF16]
    assert order(kept=1, integers=9)[:2] == [INT8_THERE, BF16]


@pytest.mark.parametrize(("kept", "integers"), [(40, 91), (2, 9), (9, 1)])
def test_preference_bf16_before_largely_fp32_int8(order, kept, integers):
    assert order(kept, integers)[:2] == [BF16, INT8_THERE]


def test_preference_int8_without_node_counts(order):
    assert order(kept=40, integers=None)[:2] == [INT8_THERE, BF16]


@pytest.mark.parametrize(
    ("made_for", "there", "last"),
    [("openvino", INT8_THERE, INT8_HERE), ("onnxruntime-cpu", INT8_HERE, INT8_THERE)],
)
def test_preference_int8_for_another_runtime_is_last(order, made_for, there, last):
    found = order(kept=0, integers=9, made_for=made_for)
    assert found[-1] == last
    assert found.index(there) < found.index(("openvino", "fp32"))
