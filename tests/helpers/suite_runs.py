"""Runs of the suite as a user starts them: pytest in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import onnx
from onnx import TensorProto, helper

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.bundle.manifest import record_file, update_manifest


def run_plain_pytest(cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run pytest without any plugin but its own, in a folder, on a machine without a GPU."""
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **alone},
        capture_output=True,
        text=True,
        timeout=240,
    )


def run_pytest(cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run pytest with deploykit's plugin, installed or not."""
    return run_plain_pytest(cwd, "-p", "deploykit.suite.plugin", *arguments)


def run_suite(
    cwd: Path, bundle: Bundle | Path, images: Path | None, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run the suite against a bundle."""
    folder = bundle.folder if isinstance(bundle, Bundle) else bundle
    photos = [] if images is None else ["--deploykit-images", images]
    options = ["--deploykit-bundle", folder, *photos, *arguments]
    return run_pytest(cwd, "--pyargs", "deploykit.suite", "-v", *options)


def outcomes(run: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The outcome of each test, by its name with its parameters."""
    lines = (line.split() for line in run.stdout.splitlines() if "::test_" in line)
    return {
        words[0].partition("::")[2]: words[1]
        for words in lines
        if len(words) > 1 and words[1] in ("PASSED", "FAILED", "SKIPPED", "ERROR")
    }


def edited(bundle: Bundle, **fields: object) -> Bundle:
    """The bundle with other fields in its manifest."""
    update_manifest(bundle.folder, lambda manifest: msgspec.structs.replace(manifest, **fields))
    return open_bundle(bundle.folder)


def acknowledged(bundle: Bundle, file: str) -> Bundle:
    """The bundle whose manifest calls a file that was changed its own."""
    files = open_bundle(bundle.folder).manifest.files
    return edited(bundle, files={**files, file: record_file(bundle.folder / file)})


def spoil_batches(bundle: Bundle, file: str, above: int) -> Bundle:
    """Let a deploy graph prefer its first class in batches of more than so many images."""
    path = bundle.folder / file
    model = onnx.load(path)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["sound" if name == "logits" else name for name in node.output]
    bias = [100.0] + [0.0] * (bundle.manifest.architecture.classes - 1)
    graph.initializer.append(helper.make_tensor("limit", TensorProto.INT64, [1], [above]))
    graph.initializer.append(helper.make_tensor("bias", TensorProto.FLOAT, [len(bias)], bias))
    graph.node.extend(
        [
            helper.make_node("Shape", ["images"], ["batch"], end=1),
            helper.make_node("Greater", ["batch", "limit"], ["large"]),
            helper.make_node("Cast", ["large"], ["switch"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["switch", "bias"], ["fault"]),
            helper.make_node("Add", ["sound", "fault"], ["logits"]),
        ]
    )
    onnx.save(model, path)
    return acknowledged(bundle, file)
