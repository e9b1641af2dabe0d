"""``deploykit inspect``: exit codes, JSON, and what it does not load."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bundle_files import acknowledged

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


def rewritten(folder, *path, value):
    """Another value in a bundle's manifest, put there by hand."""
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    *outer, last = path
    within = manifest
    for key in outer:
        within = within[key]
    within[last] = value
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("labels", "names"), ["red", "green", "blue"]),
        (("preprocessing", "mean"), [0.1, 0.2, 0.3]),
        (("preprocessing", "std"), [0.5, 0.5, 0.5]),
        (("preprocessing", "resize"), [20, 20]),
        (("labels", "names"), ["bl\nue", "green", "red"]),
    ],
)
def test_inspect_says_what_predict_and_verify_say(bundle, photo_folder, path, value, capsys):
    rewritten(bundle.folder, *path, value=value)
    name = ["--bundle", str(bundle.folder)]
    said = {}
    for command in (
        ["predict", str(photo_folder), "--output", str(bundle.folder.parent / "x.csv"), *name],
        ["verify", "--images", str(photo_folder), *name],
        ["inspect", str(bundle.folder)],
    ):
        assert run([*command, "--json"]) == 4
        answer = json.loads(capsys.readouterr().out)
        told = answer["result"]["damage"] if "result" in answer else [answer["error"]["message"]]
        said[command[0]] = told[0]
    graphs = ("deploy/fp32.onnx", "model.onnx")
    for graph in graphs:  # each command meets another one first
        said = {command: text.replace(graph, "GRAPH") for command, text in said.items()}
    assert len({*said.values()}) == 1
    assert "GRAPH was exported with" in said["inspect"] or "control character" in said["inspect"]


def test_inspect_text_of_a_changed_manifest_shows_what_it_can(bundle, capsys):
    rewritten(bundle.folder, "labels", "names", value=["red", "green", "blue"])
    assert run(["inspect", str(bundle.folder)]) == 4
    text = capsys.readouterr().out
    assert "classes        red, green, blue" in text
    assert "REFUSED" in text
    assert "DAMAGED        " in text
    assert 'exported with deploykit.labels ["blue","green","red"]' in text


def test_inspect_text_escapes_what_a_manifest_says(bundle, capsys):
    forged = "x\nproven         forged"
    for path in (("labels", "source"), ("architecture", "name"), ("checkpoint", "path")):
        rewritten(bundle.folder, *path, value=forged)
    run(["inspect", str(bundle.folder)])
    text = capsys.readouterr().out
    assert "forged" in text
    assert not [line for line in text.splitlines() if line.startswith("proven         forged")]


def test_inspect_golden_answers_that_are_none(bundle, capsys):
    """It is the recorded file, and yet no array of images."""
    (bundle.folder / "golden.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    acknowledged(bundle, "golden.npz")
    assert run(["inspect", str(bundle.folder), "--json"]) == 4
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["files"]["golden.npz"] == "refused"
    assert "golden.npz is damaged" in result["damage"][0]


@pytest.mark.parametrize("name", ["model.onnx", "deploy/fp32.onnx", "golden.npz"])
def test_inspect_unreadable_file(bundle, name, monkeypatch, capsys):
    refuse_to_open(monkeypatch, bundle.folder / name)
    assert run(["inspect", str(bundle.folder), "--json"]) == 4
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["files"][name] == "unreadable"
    assert result["damage"][0].endswith(f"{name} cannot be read (Permission denied).")


def test_inspect_unreadable_manifest(bundle, monkeypatch, capsys):
    refuse_to_open(monkeypatch, bundle.folder / "bundle.json")
    assert run(["inspect", str(bundle.folder)]) == 4
    error = capsys.readouterr().err
    assert "bundle.json cannot be read: Permission denied" in error
    assert "not a bundle" not in error


def refuse_to_open(monkeypatch, refused):
    """As the system does to users whose file it is not; root reads everything."""
    opened = Path.open

    def open_others(path, *arguments, **options):
        if path == refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_others)


@pytest.mark.parametrize("kind", ["device", "pipe"])
@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device here")
def test_inspect_what_is_no_file(tmp_path, kind, capsys):
    path = Path("/dev/zero") if kind == "device" else tmp_path / "x.onnx"
    if kind == "pipe":
        os.mkfifo(path)
    assert run(["inspect", str(path)]) == 4
    assert f"{path} is a device or a pipe" in capsys.readouterr().err


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_inspect_too_long_a_path(option, capsys):
    assert run(["inspect", "x" * 5000, *option]) == 4
    shown = capsys.readouterr()
    assert "stdout" not in shown.err
    if option:
        answer = json.loads(shown.out)
        assert (answer["command"], answer["exit_code"]) == ("inspect", 4)
        assert "name too long" in answer["error"]["message"]
    else:
        assert "name too long" in shown.err
