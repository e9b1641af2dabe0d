"""What each graph rule gives: deploy graphs with all rules, and with each left out, against none.

    python benchmarks/graph_rules.py --graphs DIR [--networks dpn92] [--batches 1 8 32]
        [--options onnxruntime-cpu:fp32 openvino:bf16] [--repeats 5] [--threads 2] [--clock cpu]

Prints one table: the images/s of the session on the graph without rules, and how many times that
the graph gives with all rules, and without each one. Two sessions at a time run in turns, and a
ratio is the median over the turns, so that what else the machine does hardly counts; where it does
much, ``--clock cpu`` counts the CPU's time instead of the clock's. INT8 graphs are calibrated
here, on made images: their speed means something, their answers do not.

The networks have random weights; DIR keeps their canonical graphs and INT8 graphs for the next run.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch

from deploykit.commands.quantize.int8 import ranges_of
from deploykit.commands.quantize.observe import observed
from deploykit.graph import passes
from deploykit.graph.deploy import fuse_preprocessing
from deploykit.graph.export import onnx_from_module
from deploykit.graph.instruments import model_bytes
from deploykit.graph.int8 import convert_to_int8, quantized_tensors
from deploykit.graph.optimise import DEPLOY_RULES
from deploykit.models.registry import resolve_architecture
from deploykit.parity.calibration import ValueRange
from deploykit.runtime.opener import OPENVINO, open_graph
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import ImageBatch, Session
from deploykit.system.progress import silent

NETWORKS = (
    "dpn92",
    "torchvision/densenet121",
    "torchvision/resnet50",
    "torchvision/resnext50_32x4d",
    "torchvision/efficientnet_b0",
)
OPTIONS = (
    "onnxruntime-cpu:fp32",
    "onnxruntime-cpu:int8",
    "openvino:fp32",
    "openvino:bf16",
    "openvino:int8",
)
SIZE = (224, 224)
PREPROCESSING = Preprocessing(resize=SIZE)
LABELS = Labels.numbered(1000)
CALIBRATION_IMAGES = 4
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def made_images(count: int) -> ImageBatch:
    """Noise: (count, H, W, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def canonical_graph(network: str, folder: Path) -> ir.Model:
    """The graph of a network whose normalisations have statistics, as after training."""
    path = folder / f"{network.replace('/', '_')}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        module = resolve_architecture(network, allow_user_code=False).build(len(LABELS)).eval()
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.get_buffer("running_mean").normal_(0, 0.1)
                layer.get_buffer("running_var").uniform_(0.5, 1.5)
        ir.save(onnx_from_module(module, SIZE), path)
    return ir.load(path)


def deploy_graph(network: str, rules: Sequence[passes.Pass], folder: Path) -> bytes:
    """The FP32 deploy graph made with some of the rules."""
    fuse = fuse_preprocessing(PREPROCESSING)
    return model_bytes(passes.apply(canonical_graph(network, folder), [*rules, fuse]))


def quantized(graph: bytes, runtime: str, folder: Path) -> bytes:
    """The graph in INT8, without a node in FP32; weights are rounded to the nearest."""
    name = hashlib.sha256(graph).hexdigest()[:16]
    path = folder / f"{name}.{runtime}.int8.onnx"
    if not path.exists():
        model = ir.from_proto(onnx.load_from_string(graph))
        batches = [(["made"], image[None]) for image in made_images(CALIBRATION_IMAGES)]
        seen = {tensor: ValueRange() for tensor in quantized_tensors(model)}
        for values in observed(model, seen, batches, silent, "calibrating"):
            for tensor, extremes in seen.items():
                extremes.add(values[tensor])
        convert = convert_to_int8(ranges_of(seen, "minmax"), joins=runtime != OPENVINO)
        path.write_bytes(model_bytes(passes.apply(model, [convert])))
    return path.read_bytes()


def open_option(graph: bytes, option: str, options: argparse.Namespace) -> Session:
    """Open a deploy graph on ``runtime:precision``."""
    runtime, precision = option.split(":")
    return open_graph(
        quantized(graph, runtime, options.graphs) if precision == "int8" else graph,
        name=option,
        runtime=runtime,
        precision="int8" if precision == "int8" else "fp32",
        preprocessing=PREPROCESSING,
        labels=LABELS,
        threads=options.threads,
    )


def compare(
    base: Session, other: Session, images: ImageBatch, options: argparse.Namespace
) -> tuple[float, float]:
    """The base's images/s, and how many times that the other has."""
    clock = CLOCKS[options.clock]
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(-1, options.repeats):
        for index, session in enumerate((base, other)):
            start = clock()
            session.run(images)
            if turn >= 0:  # the first is to warm up
                seconds[index].append(clock() - start)
    ratio = statistics.median(first / second for first, second in zip(*seconds, strict=True))
    return len(images) / statistics.median(seconds[0]), ratio


def moved(base: bytes, other: bytes, options: argparse.Namespace) -> float:
    """The largest change of a logit, relative to the largest logit, on ONNX Runtime in FP32."""
    images = made_images(4)
    first, second = (
        open_option(graph, "onnxruntime-cpu:fp32", options).run(images) for graph in (base, other)
    )
    return float(np.abs(first - second).max() / np.abs(first).max())


def main() -> None:
    """Measure and print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8, 32))
    parser.add_argument("--options", nargs="+", default=OPTIONS, choices=OPTIONS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    options.graphs.mkdir(parents=True, exist_ok=True)

    for index, rule in enumerate(DEPLOY_RULES, 1):
        print(f"-{index}: without {rule.__name__}")
    print(f"{'':<28}{'':<22}{'batch':>6}{'images/s':>10}{'all':>7}", end="")
    print("".join(f"{-index:>7}" for index in range(1, len(DEPLOY_RULES) + 1)))
    for network in options.networks:
        rows_of(network, options)


def rows_of(network: str, options: argparse.Namespace) -> None:
    """Print a network's rows; one line for a network that no rule changes."""
    plain = deploy_graph(network, (), options.graphs)
    chosen = [
        DEPLOY_RULES,
        *(tuple(r for r in DEPLOY_RULES if r is not out) for out in DEPLOY_RULES),
    ]
    variants = [deploy_graph(network, rules, options.graphs) for rules in chosen]
    if all(variant == plain for variant in variants):
        print(f"{network:<28}the rules leave every byte as it is")
        return
    print(f"{network:<28}numbers move by {moved(plain, variants[0], options):.1e} of the scale")
    for option in options.options:
        found: dict[int, list[tuple[float, float]]] = {batch: [] for batch in options.batches}
        for variant in variants:
            with (
                open_option(plain, option, options) as base,
                open_option(variant, option, options) as other,
            ):
                for batch in options.batches:
                    found[batch].append(compare(base, other, made_images(batch), options))
        for batch, cells in found.items():
            speed = statistics.median(speed for speed, _ in cells)
            ratios = "".join(f"{ratio:>7.3f}" for _, ratio in cells)
            print(f"{network:<28}{option:<22}{batch:>6}{speed:>10.1f}{ratios}", flush=True)


if __name__ == "__main__":
    main()
