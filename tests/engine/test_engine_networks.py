"""Engines of real networks: FP16, dynamic batch, for an RTX 40 and for any."""

import onnx_ir as ir
import pytest
import torch

from deploykit.engine.passport import check_plan, read_header
from deploykit.graph.deploy import apply_deploy_passes
from deploykit.graph.export import onnx_from_module
from deploykit.graph.fp16 import convert_to_fp16
from deploykit.models.registry import resolve_architecture
from deploykit.specs.engine import Profile
from deploykit.specs.model import TensorSpec
from deploykit.specs.preprocessing import Preprocessing

#: The architecture and the side of its images.
SMALL = [("resnet_cifar96", 96)]
LARGE = [
    ("dpn92", 224),
    ("densenet", 224),
    ("torchvision/resnet50", 224),
    ("torchvision/densenet121", 224),
    ("torchvision/efficientnet_b0", 224),
]


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(case, id=case[0]) for case in SMALL),
        *(pytest.param(case, id=case[0], marks=pytest.mark.slow) for case in LARGE),
    ],
)
def network(request, tmp_path_factory):
    """A network's FP16 deploy graph and the side of its images."""
    arch, side = request.param
    torch.manual_seed(0)
    module = resolve_architecture(arch, allow_user_code=True).build(10).eval()
    model = onnx_from_module(module, (side, side))
    fp32 = apply_deploy_passes(model, Preprocessing(resize=(side, side)))
    fp16, _ = convert_to_fp16()(fp32)
    path = tmp_path_factory.mktemp("deploy") / "fp16.onnx"
    ir.save(fp16, path)
    return path, side


@pytest.mark.parametrize("target", ["sm89", "portable"])
def test_engine_from_onnx_of_fp16_networks(build, network, target):
    path, side = network
    steps = []
    built = build(
        path,
        targets=(target,),
        profile=Profile(max_batch=16),
        on_step=lambda *step: steps.append(step),
    )
    assert built.inputs == (TensorSpec(name="images", dtype="uint8", shape=("N", side, side, 3)),)
    assert built.outputs == (TensorSpec(name="logits", dtype="float32", shape=("N", 10)),)
    assert check_plan(built.plan, "tensorrt_rtx") is None
    assert read_header(built.plan).targets == (target,)
    assert len(steps) > 20
    # The weights and some kernels; in FP32 the weights alone would be twice the graph.
    weights = path.stat().st_size
    assert 0.98 * weights < len(built.plan) < weights + 12e6
