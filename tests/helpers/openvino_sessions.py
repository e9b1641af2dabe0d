"""OpenVINO sessions of the small network's graphs, and of graphs written as text."""

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from runtime_graphs import LABELS

from deploykit.runtime.opener import open_graph
from deploykit.specs.model import Labels

HEADER = '<ir_version: 10, opset_import: ["" : 20, "odd" : 1]>'


def open_file(path, preprocessing, *, precision="fp32", labels=LABELS, **options):
    return open_graph(
        path,
        name=f"deploy/{path.name}",
        runtime="openvino",
        precision=precision,
        preprocessing=preprocessing,
        labels=labels,
        **options,
    )


def graph_bytes(text):
    return ir.to_proto(ir.from_onnx_text(HEADER + text)).SerializeToString()


def open_text(text, preprocessing, *, classes=3, precision="fp32", **options):
    return open_graph(
        graph_bytes(text),
        name="graph.onnx",
        runtime="openvino",
        precision=precision,
        preprocessing=preprocessing,
        labels=Labels.numbered(classes),
        **options,
    )


class _Images(CalibrationDataReader):
    def __init__(self, name, batches):
        self._feeds = iter([{name: batch} for batch in batches])

    def get_next(self):
        return next(self._feeds, None)


def quantize(source, target, images, *, name="images"):
    """Write a graph's INT8 QDQ graph, calibrated on what it takes, one by one."""
    reader = _Images(name, np.split(images, len(images)))
    quantize_static(source, target, reader, quant_format=QuantFormat.QDQ, per_channel=True)
