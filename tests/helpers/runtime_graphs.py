"""Deploy graphs of a small random network, for the tests of the runtimes on devices."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from deploykit.graph import passes
from deploykit.graph.deploy import fuse_preprocessing
from deploykit.graph.export import onnx_from_module
from deploykit.graph.files import save_graph
from deploykit.graph.fp16 import convert_to_fp16
from deploykit.runtime.opener import open_graph
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Preprocessing

CLASSES = 5
LABELS = Labels.numbered(CLASSES)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    ).eval()


def write_deploy_graphs(module: nn.Module, preprocessing: Preprocessing, folder: Path):
    """Write ``fp32.onnx`` and ``fp16.onnx``; their paths by precision."""
    graph = onnx_from_module(module, preprocessing.input_size)
    paths = {}
    for precision, step in (
        ("fp32", fuse_preprocessing(preprocessing)),
        ("fp16", convert_to_fp16()),
    ):
        graph = passes.apply(graph, [step])
        paths[precision] = folder / f"{precision}.onnx"
        save_graph(graph, paths[precision], labels=LABELS, preprocessing=preprocessing)
    return paths


def open_on(runtime, paths, precision, preprocessing, **options):
    return open_graph(
        paths[precision],
        name=f"deploy/{precision}.onnx",
        runtime=runtime,
        precision=precision,
        preprocessing=preprocessing,
        labels=LABELS,
        **options,
    )


def random_images(count, preprocessing):
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, *preprocessing.input_size, 3), dtype=np.uint8)


#: The largest error of a logit relative to the largest logit: what FP32 and FP16 kernels that sum
#: in another order may differ by, far below what a wrong image, row or weight would cause.
ERROR_LIMIT = {"fp32": 1e-4, "fp16": 1e-2}


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()
