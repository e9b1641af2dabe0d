"""Importing, ``--help`` and a prediction load nothing heavy: proven in fresh processes."""

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "tensorrt",
    "matplotlib",
    "pyarrow",
    "jinja2",
}
RUN = "import sys; from deploykit.commands.app import run; assert run(sys.argv[1:]) == 0"
REPORT = "\nimport sys; print(*sys.modules)"


def loaded_after(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh process has loaded when it ends."""
    process = subprocess.run(
        [sys.executable, "-c", code + REPORT, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(process.stdout.splitlines()[-1].split())


def test_import_loads_nothing_heavy():
    assert not loaded_after("import deploykit") & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    assert not loaded_after(RUN, *arguments) & HEAVY


def test_predict_loads_onnxruntime_and_few_modules(exported_bundle, photo_folder, tmp_path):
    output = ["--output", str(tmp_path / "rows.csv")]
    one_file = str(sorted(photo_folder.rglob("*.png"))[0])
    loaded = loaded_after(
        RUN, "predict", one_file, "--bundle", str(exported_bundle.folder), *output
    )
    assert loaded & HEAVY == {"onnxruntime"}
    ours = {name for name in loaded if name.split(".")[0] == "deploykit"}
    assert len(ours) <= 81, sorted(ours)
    assert not [name for name in ours if name.split(".")[1:2] in (["models"], ["graph"])]
    commands = {name.split(".")[2] for name in ours if name.startswith("deploykit.commands.")}
    assert commands == {"app", "predict"}


def test_self_test_loads_only_onnxruntime(exported_bundle):
    arguments = ["verify", "--self-test", "--bundle", str(exported_bundle.folder)]
    assert loaded_after(RUN, *arguments) & HEAVY == {"onnxruntime"}


def test_predict_with_openvino_loads_nothing_heavy(exported_bundle, photo_folder, tmp_path):
    arguments = ["predict", str(photo_folder), "--bundle", str(exported_bundle.folder)]
    options = ["--output", str(tmp_path / "rows.csv"), "--runtime", "openvino"]
    assert not loaded_after(RUN, *arguments, *options) & HEAVY
