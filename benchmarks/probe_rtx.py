"""Does TensorRT for RTX run on this GPU? A line for each step, whatever happens.

    python benchmarks/probe_rtx.py

Builds a small network for several GPUs, in FP16 and FP32; with a GPU and torch it also runs each
engine and compares it with torch. NVIDIA's list of GPUs lacks some (the H100 and H200), where a
portable engine may run or not.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser

TARGETS = ("portable", "CURRENT", "SM80", "SM89", "SM120")
Array = npt.NDArray[Any]


def weights() -> tuple[Array, Array]:
    """Of the convolution, (32, 3, 3, 3), and of the last layer, (4, 32)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((32, 3, 3, 3)) / 5, rng.standard_normal((4, 32)) / 6


def graph(precision: str) -> bytes:
    """The network in FP16 or FP32, with FP32 inputs and outputs."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        tiny (float[n, 3, 32, 32] x) => (float[n, 4] y) {{
            xh = Cast <to: int = {10 if precision == "float16" else 1}> (x)
            c = Conv <pads: ints = [1, 1, 1, 1]> (xh, w1)
            r = Relu (c)
            p = GlobalAveragePool (r)
            f = Flatten (p)
            g = Gemm <transB: int = 1> (f, w2)
            y = Cast <to: int = 1> (g)
        }}
    """)
    for name, value in zip(("w1", "w2"), weights(), strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(precision), name))
    plain: bytes = model.SerializeToString()
    return plain


def build(trt: Any, logger: Any, precision: str, target: str) -> bytes | None:
    """An engine for a target; None, and a line, if it cannot be built."""
    builder = trt.Builder(logger)
    strongly = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph(precision)):
        print("parse failed", [parser.get_error(i).desc() for i in range(parser.num_errors)])
        return None
    config = builder.create_builder_config()
    if target != "portable":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 3, 32, 32), (8, 3, 32, 32), (16, 3, 32, 32))
    config.add_optimization_profile(profile)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        print("build failed")
        return None
    blob = bytes(plan)
    print(f"built {len(blob)} bytes in {time.perf_counter() - start:.2f} s")
    return blob


def execute(trt: Any, logger: Any, plan: bytes) -> None:
    """Run an engine on five images and compare with torch."""
    import torch

    runtime = trt.Runtime(logger)
    print("validity", runtime.get_engine_validity(plan[:64]))
    if not torch.cuda.is_available():
        print("not run: torch finds no GPU")
        return
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        print("deserialize: None")
        return
    x = torch.from_numpy(
        np.random.default_rng(1).standard_normal((5, 3, 32, 32)).astype(np.float32)
    )
    w1, w2 = (torch.from_numpy(each.astype(np.float32)) for each in weights())
    expected = torch.relu(torch.conv2d(x, w1, padding=1)).mean((2, 3)) @ w2.T
    images, answers = x.cuda(), torch.full((5, 4), float("nan"), device="cuda")
    context = engine.create_execution_context()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    context.set_input_shape("x", tuple(images.shape))
    context.set_tensor_address("x", images.data_ptr())
    context.set_tensor_address("y", answers.data_ptr())
    torch.cuda.synchronize()
    ran = context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    error = (answers.cpu() - expected).abs().max().item()
    print(f"executed: {ran}, max error against torch {error:.2e}")


def main() -> None:
    """Try every precision with every target."""
    import tensorrt_rtx as trt

    print("tensorrt_rtx", trt.__version__)
    logger = trt.Logger(trt.Logger.WARNING)
    for precision in ("float16", "float32"):
        for target in TARGETS:
            print(f"{precision} {target}: ", end="", flush=True)
            try:
                plan = build(trt, logger, precision, target)
                if plan is not None:
                    execute(trt, logger, plan)
            except Exception as exc:  # noqa: BLE001  # a probe reports whatever happens
                print(f"raised {exc!r:.300}")


if __name__ == "__main__":
    main()
