"""Importing, ``--help`` and a prediction load nothing heavy: proven in fresh processes."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "tensorrt",
    "matplotlib",
    "pyarrow",
    "jinja2",
)

REPORT = f"""
import json, sys
print(json.dumps([name for name in {(*HEAVY, "onnxruntime")!r} if name in sys.modules]))
"""


def loaded_after(code: str, *arguments: str) -> list[str]:
    process = subprocess.run(
        [sys.executable, "-c", code + REPORT, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def test_importing_loads_nothing_heavy():
    assert loaded_after("import deploykit") == []


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = "import sys; from deploykit.commands.app import run; assert run(sys.argv[1:]) == 0"
    assert loaded_after(code, *arguments) == []


def test_a_prediction_loads_only_onnx_runtime(exported_bundle, photo_folder, tmp_path):
    code = "import sys; from deploykit.commands.app import run; assert run(sys.argv[1:]) == 0"
    arguments = ["predict", str(photo_folder), "--bundle", str(exported_bundle.folder)]
    output = ["--output", str(tmp_path / "rows.csv")]
    assert loaded_after(code, *arguments, *output) == ["onnxruntime"]


def test_a_self_test_loads_only_onnx_runtime(exported_bundle):
    code = "import sys; from deploykit.commands.app import run; assert run(sys.argv[1:]) == 0"
    arguments = ["verify", "--self-test", "--bundle", str(exported_bundle.folder)]
    assert loaded_after(code, *arguments) == ["onnxruntime"]


def test_a_prediction_with_openvino_does_not_load_onnx_runtime(
    exported_bundle, photo_folder, tmp_path
):
    code = "import sys; from deploykit.commands.app import run; assert run(sys.argv[1:]) == 0"
    arguments = ["predict", str(photo_folder), "--bundle", str(exported_bundle.folder)]
    options = ["--output", str(tmp_path / "rows.csv"), "--runtime", "openvino"]
    assert loaded_after(code, *arguments, *options) == []
