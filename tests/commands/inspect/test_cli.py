"""``deploykit inspect``: exit codes, JSON, and what it does not load."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from deploykit.commands.app import run


def test_inspect_text(exported_bundle, capsys):
    assert run(["inspect", str(exported_bundle.folder)]) == 0
    assert "proven         model.onnx on onnxruntime-cpu: executed" in capsys.readouterr().out


def test_inspect_json(exported_bundle, capsys):
    assert run(["inspect", str(exported_bundle.folder), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["command"], answer["exit_code"]) == ("inspect", 0)
    assert answer["result"]["kind"] == "bundle"
    assert answer["result"]["manifest"]["name"] == "colours"


def test_inspect_json_of_changed_file_exits_with_4(tmp_path, exported_bundle, capsys):
    folder = tmp_path / "colours"
    shutil.copytree(exported_bundle.folder, folder)
    (folder / "golden.npz").write_bytes(b"")
    assert run(["inspect", "colours", "--artifacts", str(tmp_path), "--json"]) == 4
    answer = json.loads(capsys.readouterr().out)
    assert answer["result"]["files"]["golden.npz"] == "changed"


@pytest.mark.parametrize("name", ["notes.txt", "nonsuch.pth"])
def test_inspect_other_files_exits_with_4(tmp_path, name, capsys):
    (tmp_path / "notes.txt").write_text("not weights", encoding="utf-8")
    assert run(["inspect", str(tmp_path / name)]) == 4
    assert "Traceback" not in capsys.readouterr().err


def test_inspect_trusted_pickle(tmp_path, capsys):
    torch.save(torch.nn.Linear(4, 3), tmp_path / "whole.pth")
    assert run(["inspect", str(tmp_path / "whole.pth")]) == 4
    assert "add --trust-pickle to this command" in capsys.readouterr().err
    assert run(["inspect", str(tmp_path / "whole.pth"), "--trust-pickle"]) == 0
    assert "2 tensors, 15 numbers" in capsys.readouterr().out


def test_inspect_bundle_loads_no_torch_or_onnx(exported_bundle):
    code = (
        "import sys; from deploykit.commands.app import run; assert run(sys.argv[1:]) == 0; "
        "print([name for name in ('torch', 'onnx', 'onnx_ir', 'jinja2') if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(exported_bundle.folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.splitlines()[-1] == "[]"
