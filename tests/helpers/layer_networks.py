"""A small network with the blocks that real ones have, and changes to its bundle's graphs."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
import torch

from deploykit.bundle.folder import Bundle, deploy_graph, open_bundle
from deploykit.bundle.manifest import record_file, update_manifest
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.graph.files import load_graph, save_graph
from deploykit.graph.fp16 import convert_to_fp16
from deploykit.models.registry import resolve_architecture
from deploykit.specs.preprocessing_options import PreprocessingOptions

NETWORKS = '''
import torch
from torch import nn


def conv_bn(inputs, outputs, kernel=3):
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(width, 2, 1)
        self.act = nn.SiLU()
        self.up = nn.Conv2d(2, width, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(self.up(self.act(self.down(self.pool(x)))))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(conv_bn(width, width), Squeeze(width))
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(self.body(x) + x))


class Dense(nn.Module):
    """Two branches of the same shape, one behind the other."""

    def __init__(self, width):
        super().__init__()
        self.left = nn.Conv2d(width, width // 2, 1)
        self.right = nn.Conv2d(width, width // 2, 3, padding=1)

    def forward(self, x):
        return torch.cat([self.left(x), self.right(x)], 1)


class DualPath(nn.Module):
    """One half is added, the other appended."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width + 2, 1)
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        width = x.shape[1]
        return self.act(torch.cat([x + y[:, :width], y[:, width:]], 1))


class Blocks(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.residual = Residual(6)
        self.dense = Dense(6)
        self.dual = DualPath(6)
        self.twice = nn.Hardswish()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.flatten = nn.Flatten()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(32, num_classes)

    def forward(self, x):
        x = self.twice(self.dual(self.twice(self.dense(self.residual(self.stem(x))))))
        return self.head(self.drop(self.flatten(self.pool(x))))
'''
CLASSES = 3


def export_blocks(photos: Path, folder: Path) -> Bundle:
    """A bundle of ``Blocks``."""
    return export_bundle(blocks_request(photos, folder)).bundle


def blocks_request(photos: Path, folder: Path, **changes: Any) -> ExportRequest:
    """An export of ``Blocks`` with made weights, which answers decidedly."""
    code = folder / "networks.py"
    code.write_text(NETWORKS, encoding="utf-8")
    torch.manual_seed(0)
    module = resolve_architecture(f"{code}:Blocks", allow_user_code=True).build(CLASSES)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 2)
                part.weight.uniform_(0.5, 2)
                part.bias.normal_(0, 0.2)
        module.head.weight.mul_(20)
    torch.save(module.state_dict(), folder / "best_model.pth")
    request = ExportRequest(
        arch=f"{code}:Blocks",
        checkpoint=folder / "best_model.pth",
        classes=str(photos),
        images=photos,
        preprocessing=PreprocessingOptions(input_size=(16, 16)),
        name="blocks",
        artifacts=folder / "artifacts",
    )
    return dataclasses.replace(request, **changes)


def rewritten(bundle: Bundle, file: str, change) -> Bundle:
    """The bundle with a graph that was changed behind its back, and called its own."""
    model = load_graph(bundle.folder / file)
    change(model.graph)
    return replaced(bundle, file, model)


def replaced(bundle: Bundle, file: str, model: ir.Model) -> Bundle:
    """The bundle with another graph, called its own."""
    manifest, path = bundle.manifest, bundle.folder / file
    save_graph(model, path, labels=manifest.labels, preprocessing=manifest.preprocessing)
    return _recorded(bundle, file)


def with_fp16(bundle: Bundle, keep=()) -> Bundle:
    """The bundle with an FP16 graph that keeps only these nodes in FP32, whatever it costs."""
    manifest, file = bundle.manifest, deploy_graph("fp16")
    model, _ = convert_to_fp16(keep)(load_graph(bundle.folder / deploy_graph("fp32")))
    path = bundle.folder / file
    save_graph(model, path, labels=manifest.labels, preprocessing=manifest.preprocessing)
    return _recorded(bundle, file, deploy={**manifest.deploy, "fp16": file})


def node_of(graph: ir.Graph, module: str, operator: str) -> ir.Node:
    """The first node of a module with this operator."""
    return next(
        node
        for node in graph
        if (node.metadata_props.get("module"), node.op_type) == (module, operator)
    )


def drop(module: str, operator: str):
    """Take a node out of a graph: what read its output reads its input."""

    def change(graph: ir.Graph) -> None:
        node = node_of(graph, module, operator)
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        graph.remove(node, safe=True)

    return change


def perturb(module: str, operator: str, factor: float):
    """Change one element of a node's weight."""

    def change(graph: ir.Graph) -> None:
        weight = node_of(graph, module, operator).inputs[1]
        values = weight.const_value.numpy().copy()
        values.flat[1] *= factor
        weight.const_value = ir.tensor(values, name=weight.name)

    return change


def _recorded(bundle: Bundle, file: str, **fields: object) -> Bundle:
    def change(manifest):
        files = {**manifest.files, file: record_file(bundle.folder / file)}
        return msgspec.structs.replace(manifest, files=files, **fields)

    update_manifest(bundle.folder, change)
    return open_bundle(bundle.folder)
