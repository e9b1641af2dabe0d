"""All rules together, on a small dual path network as torch exports it."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from deploy_graphs import run
from torch import nn

from deploykit.graph import passes
from deploykit.graph.deploy import fuse_preprocessing
from deploykit.graph.export import onnx_from_module
from deploykit.graph.fp16 import convert_to_fp16
from deploykit.graph.instruments import model_bytes, with_outputs
from deploykit.graph.optimise import DEPLOY_RULES
from deploykit.graph.rehearsal import rehearsal_of
from deploykit.models.zoo.dpn import DualPathBlock
from deploykit.specs.preprocessing import Preprocessing

SIDE = 24
FUSE = fuse_preprocessing(Preprocessing(resize=(SIDE, SIDE)))
DARK_TO_BRIGHT = np.linspace(0, 255, SIDE * SIDE, dtype=np.float32).astype(np.uint8)
IMAGES = {
    "noise": np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8),
    "smooth": np.broadcast_to(DARK_TO_BRIGHT.reshape(1, SIDE, SIDE, 1), (2, SIDE, SIDE, 3)),
    "black": np.zeros((1, SIDE, SIDE, 3), np.uint8),
}


def block(channels, *, shortcut=False):
    return DualPathBlock(
        channels, 16, residual=32, dense=8, stride=1 + shortcut, groups=4, shortcut=shortcut
    )


@pytest.fixture(scope="module")
def canonical():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Sequential(block(16, shortcut=True), block(48), block(56)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)),
    ).eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return onnx_from_module(module, (SIDE, SIDE))


@pytest.fixture
def plain(canonical):
    """The deploy graph without rules."""
    return passes.apply(canonical.clone(), [FUSE])


@pytest.fixture
def optimised(canonical):
    """The deploy graph as export makes it."""
    return passes.apply(canonical.clone(), [*DEPLOY_RULES, FUSE])


@pytest.mark.parametrize("kind", IMAGES)
def test_deploy_rules_keep_the_logits(plain, optimised, kind):
    before, after = (run(model, IMAGES[kind])["logits"] for model in (plain, optimised))
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


def test_deploy_rules_remove_slices_and_joined_relus(plain, optimised):
    before, after = (Counter(node.op_type for node in model.graph) for model in (plain, optimised))
    # Three blocks: each cuts its new path and its old one in two.
    assert before["Slice"] == 12
    assert after["Slice"] == 0
    assert after["Conv"] == before["Conv"] + 3 + 1
    assert not any(
        node.op_type == "Relu" and node.inputs[0].producer().op_type == "Concat"
        for node in optimised.graph
    )
    assert after["Add"] == before["Add"]


def test_deploy_rules_twice_change_nothing(canonical):
    model = passes.apply(canonical.clone(), DEPLOY_RULES)
    once = model_bytes(model)
    assert [rule(model)[1] for rule in DEPLOY_RULES] == [False] * len(DEPLOY_RULES)
    assert model_bytes(model) == once


def test_deploy_rules_keep_values_of_shared_names(plain, optimised):
    """The diagnosis compares two graphs where they share names."""
    names = [
        {value.name for node in model.graph for value in node.outputs}
        for model in (plain, optimised)
    ]
    shared = sorted((names[0] & names[1]) - {"logits"})
    assert len(shared) > len(plain.graph) / 2
    before, after = (
        run(with_outputs(each, shared), IMAGES["noise"]) for each in (plain, optimised)
    )
    for name in shared:
        assert np.abs(after[name] - before[name]).max() <= 1e-5 * np.abs(before[name]).max()


def test_deploy_rules_keep_modules(plain, optimised):
    before, after = (
        {node.metadata_props[passes.MODULE_PATH] for node in model.graph}
        for model in (plain, optimised)
    )
    assert after <= before
    assert {"1.0.conv3.0", "1.0.shortcut.0", "1.2.relu", "2.2"} <= after


def test_deploy_rules_result_converts_to_fp16(optimised):
    half, changed = convert_to_fp16()(optimised)
    assert changed
    rehearsal = rehearsal_of(half)
    for model in (optimised, half, rehearsal):
        onnx.checker.check_model(model_bytes(model), full_check=True)
    exact, rehearsed = (run(model, IMAGES["noise"])["logits"] for model in (optimised, rehearsal))
    error = np.abs(rehearsed - exact).max() / np.abs(exact).max()
    assert 0 < error <= 5e-3
