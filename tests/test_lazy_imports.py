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


RUN = "import sys; from deploykit.commands.app import run; assert run(sys.argv[1:]) == 0"
OURS = """
import json, sys
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "deploykit"]))
"""


def loaded_after(code: str, *arguments: str, report: str = REPORT) -> list[str]:
    process = subprocess.run(
        [sys.executable, "-c", code + report, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def test_importing_loads_nothing_heavy():
    assert loaded_after("import deploykit") == []


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    assert loaded_after(RUN, *arguments) == []


def test_a_prediction_loads_only_onnx_runtime(exported_bundle, photo_folder, tmp_path):
    arguments = ["predict", str(photo_folder), "--bundle", str(exported_bundle.folder)]
    output = ["--output", str(tmp_path / "rows.csv")]
    assert loaded_after(RUN, *arguments, *output) == ["onnxruntime"]


def test_a_self_test_loads_only_onnx_runtime(exported_bundle):
    arguments = ["verify", "--self-test", "--bundle", str(exported_bundle.folder)]
    assert loaded_after(RUN, *arguments) == ["onnxruntime"]


def test_a_prediction_with_openvino_does_not_load_onnx_runtime(
    exported_bundle, photo_folder, tmp_path
):
    arguments = ["predict", str(photo_folder), "--bundle", str(exported_bundle.folder)]
    options = ["--output", str(tmp_path / "rows.csv"), "--runtime", "openvino"]
    assert loaded_after(RUN, *arguments, *options) == []


def test_a_prediction_loads_few_modules_and_no_training_or_export(
    exported_bundle, photo_folder, tmp_path
):
    output = ["--output", str(tmp_path / "rows.csv")]
    one_file = str(sorted(photo_folder.rglob("*.png"))[0])
    bundle = ["--bundle", str(exported_bundle.folder)]
    loaded = loaded_after(RUN, "predict", one_file, *bundle, *output, report=OURS)
    assert len(loaded) <= 60, sorted(loaded)
    assert not [name for name in loaded if name.split(".")[1:2] in (["models"], ["graph"])]
    assert {name.split(".")[2] for name in loaded if name.startswith("deploykit.commands.")} == {
        "app",
        "predict",
    }


def test_doctor_loads_no_training_code(tmp_path):
    loaded = loaded_after(RUN, "doctor", "--json", report=OURS)
    commands = {name.split(".")[2] for name in loaded if name.startswith("deploykit.commands.")}
    assert commands == {"app", "doctor"}
    assert "deploykit.models" not in loaded
