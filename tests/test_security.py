"""A bundle that somebody else made: docs/security.md, a test for each row of its table."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
import torch

import deploykit
from deploykit.bundle import manifest as manifest_file
from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import record_file, recorded_path
from deploykit.commands.app import run
from deploykit.commands.export.again import export_command
from deploykit.engine.passport import how_to_build_again, read_passport
from deploykit.errors import BundleError, UsageError
from deploykit.inference.engines import engines_of
from deploykit.models.registry import resolve_architecture
from deploykit.parity.diagnosis import Finding
from deploykit.system.text import command_line

TRAP = "CODE_RAN"
DOCS = Path(deploykit.__file__).parents[1] / "docs"
CODE = f"open({TRAP!r}, 'a').write('x')\nfrom torch import nn\nclass Net(nn.Module): pass\n"
SHELL_CODE = f"x; touch {TRAP}; $(touch {TRAP}) `touch {TRAP}` \n touch {TRAP} #'\""
#: Each command that reads a bundle, as somebody runs it who has just received one.
COMMANDS = [
    "verify",
    "verify --images photos --stages --layers --html page.html --junit parity.xml",
    "verify --self-test",
    "verify --lowest-margins 5 --images photos",
    "quantize --images photos",
    "build-trt --images photos --precision fp16",
    "bench --images photos --seconds 0.1 --batch-sizes 2",
    "predict photos --html rows.html",
    "inspect",
    "package repository --format triton --preprocess",
]


@pytest.fixture
def received(tmp_path, monkeypatch, exported_bundle, photo_folder):
    """A bundle with code inside, where a user has unpacked it; nothing else is on this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as ``python -m`` does
    folder = tmp_path / "artifacts" / "colours"
    shutil.copytree(exported_bundle.folder, folder)
    shutil.copytree(photo_folder, tmp_path / "photos")
    (folder / "net.py").write_text(CODE)
    (tmp_path / "trap.py").write_text(CODE)
    forge(folder, checkpoint={"path": "/nowhere/best_model.pth"}, images=None)
    return folder


def forge(folder, **fields):
    """Change the manifest as a text, as whoever sends it can; a dictionary changes some fields."""
    path = folder / "bundle.json"
    content = json.loads(path.read_text())
    for name, value in fields.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def weights_like(folder, payload=None):
    """A checkpoint file inside the bundle, recorded by its hash."""
    path = folder / "best_model.pth"
    torch.save({"weight": torch.zeros(3, 8)} if payload is None else payload, path)
    return {"path": str(path), "sha256": record_file(path).sha256}


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return eval, (f"open({TRAP!r}, 'a')",)


@pytest.mark.parametrize(
    "name",
    ["artifacts/colours/net.py:Net", "trap:Net", "timm/trap:Net", "artifacts/colours/net.py"],
)
@pytest.mark.parametrize("origin", ["zoo", "torchvision", "timm", "user"])
def test_architecture_name_never_imports(received, name, origin, capsys):
    forge(
        received,
        architecture={"name": name, "origin": origin},
        checkpoint=weights_like(received),
    )
    assert run(["verify", "--images", "photos"]) in (0, 3)
    said = capsys.readouterr().err
    assert f"the manifest names code of its own, {name}, which runs only when --arch names" in said
    assert f"deploykit verify --bundle artifacts/colours --arch {name}" in said
    assert not Path(TRAP).exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_architecture_name_never_imports_in_any_command(received, command, capsys):
    forge(
        received,
        architecture={"name": "artifacts/colours/net.py:Net", "origin": "zoo"},
        checkpoint=weights_like(received),
    )
    assert run(command.split()) in (0, 3, 5)
    assert not Path(TRAP).exists()


def test_architecture_name_runs_if_user_names_it(received, checkpoint, network_file):
    """The same code, named on the command line: what runs is the user's decision."""
    forge(received, architecture={"name": f"{network_file}:Net", "origin": "zoo"})
    words = ("verify", "--images", "photos", "--ckpt", str(checkpoint))
    assert run(list(words)) == 2
    assert run([*words, "--arch", f"{network_file}:Net"]) == 0


def test_resolve_architecture_refuses_user_code(received):
    with pytest.raises(UsageError, match="runs only when it is named"):
        resolve_architecture("trap:Net", allow_user_code=False)
    assert not Path(TRAP).exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("timm/resnet18", {"pretrained": True}),
        ("timm/resnet18", {"checkpoint_path": "artifacts/colours/best_model.pth"}),
        ("timm/resnet18", {"pretrained_cfg": {"url": "https://example.com/x"}}),
        ("torchvision/resnet18", {"weights": "DEFAULT"}),
        ("torchvision/resnet18", {"progress": True}),
    ],
)
def test_architecture_args_neither_download_nor_read(received, name, arguments, capsys):
    forge(
        received,
        architecture={"name": name, "origin": "timm", "args": arguments},
        checkpoint=weights_like(received),
    )
    assert run(["verify", "--images", "photos"]) in (0, 3)
    said = capsys.readouterr().err
    assert "comparing with model.onnx, not with the checkpoint: " in said
    assert all(key in said for key in arguments)


@pytest.mark.parametrize("name", ["evil", "net.PY", "timm/hf_hub/x", "torchvision/", ""])
def test_architecture_name_unknown_compares_with_graph(received, name, capsys):
    forge(received, architecture={"name": name}, checkpoint=weights_like(received))
    assert run(["verify", "--images", "photos"]) in (0, 3)
    assert "comparing with model.onnx, not with the checkpoint: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", ["best_model.pth", "artifacts/colours/best_model.pth", "../x/best_model.pth", ""]
)
def test_checkpoint_relative_path_is_not_followed(received, path, capsys):
    found = weights_like(received)
    shutil.copy(received / "best_model.pth", "best_model.pth")
    forge(received, architecture={"name": "dpn92"}, checkpoint=found | {"path": path})
    run(["verify", "--images", "photos"])
    assert (
        "is no full path on a disk of this machine, and is not followed" in capsys.readouterr().err
    )


def test_checkpoint_of_the_bundle_runs_no_code(received):
    forge(
        received,
        architecture={"name": "dpn92"},
        checkpoint=weights_like(received, Payload()) | {"trusted_pickle": False},
    )
    assert run(["verify", "--images", "photos"]) == 4
    assert not Path(TRAP).exists()


def test_checkpoint_trust_is_not_taken_from_the_bundle(received, capsys):
    forge(
        received,
        architecture={"name": "dpn92"},
        checkpoint=weights_like(received, Payload()) | {"trusted_pickle": True},
    )
    assert run(["verify", "--images", "photos"]) in (0, 3)
    assert not Path(TRAP).exists()
    assert "the checkpoint runs code when it is read" in capsys.readouterr().err
    assert "--trust-pickle" not in export_command(open_bundle(received), [mended()])


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("named", ["", "--arch dpn92"])
def test_checkpoint_of_the_bundle_is_never_trusted(received, trusted, named, capsys):
    forge(
        received,
        architecture={"name": "dpn92"},
        checkpoint=weights_like(received, Payload()) | {"trusted_pickle": trusted},
    )
    assert run(f"verify --images photos --trust-pickle {named}".split()) == 2
    assert (
        "for a checkpoint that you name, not for one that a bundle names" in capsys.readouterr().err
    )
    assert not Path(TRAP).exists()


def test_checkpoint_weights_are_an_entry_of_it(received, capsys):
    found = weights_like(received) | {"weights": "../../other.pth"}
    forge(received, architecture={"name": "dpn92"}, checkpoint=found)
    assert run(["verify", "--images", "photos"]) in (0, 3)
    said = capsys.readouterr().err
    assert "comparing with model.onnx, not with the checkpoint: " in said
    assert "has no weights '../../other.pth'" in said


def test_checkpoint_that_changed_is_not_read(received, capsys):
    found = weights_like(received, Payload()) | {"sha256": "0" * 64}
    forge(received, architecture={"name": "dpn92"}, checkpoint=found)
    assert run(["verify", "--images", "photos", "--arch", "dpn92"]) == 4
    assert "has changed since the export" in capsys.readouterr().err


def test_images_are_read_from_a_full_path_only(received, capsys):
    forge(received, images="photos")
    assert run(["verify"]) in (0, 3)
    said = "photos, given at export, is no full path on a disk of this machine: using golden.npz"
    assert said in capsys.readouterr().err


def test_recorded_path_of_another_machine(monkeypatch):
    assert recorded_path("/data/photos") == Path("/data/photos")
    monkeypatch.setattr(manifest_file, "Path", PureWindowsPath)
    assert recorded_path(r"C:\data\photos") is not None
    for text in (r"\\evil\share\photos", "//evil/share/photos", r"\\?\UNC\evil\x", "photos", "C:x"):
        assert recorded_path(text) is None


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "deploy/../../secret",
        "C:\\secret",
        "deploy\\x",
        "a//b",
        "./a",
        "",
    ],
)
def test_files_outside_the_bundle_are_not_read(received, name, capsys):
    content = json.loads((received / "bundle.json").read_text())
    forge(received, files={name: content["files"]["model.onnx"]})
    assert run(["inspect"]) == 4
    assert "names no file inside the bundle" in capsys.readouterr().err


def test_checkpoint_of_another_hash_has_no_neighbours(received, capsys):
    """What training leaves beside a checkpoint is read where the hash tells that it is that one."""
    private = received.parent / "private"
    private.mkdir()
    checkpoint = private / "w.pth"
    checkpoint.write_text("private")
    (private / "classes.txt").write_text("blue\ngreen\nred")
    for sha256, beside in (("0" * 64, False), (record_file(checkpoint).sha256, True)):
        forge(received, checkpoint={"path": str(checkpoint), "sha256": sha256})
        assert run(["verify", "--images", "photos", "--stages"]) in (0, 3)
        capsys.readouterr()
        command = export_command(open_bundle(received), [mended()])
        assert ("--classes" not in command) == beside


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no pipes in folders")
@pytest.mark.parametrize("name", ["golden.npz", "deploy/fp32.onnx", "model.onnx", "bundle.json"])
def test_files_that_are_pipes_are_refused(received, name, capsys):
    (received / name).unlink()
    os.mkfifo(received / name)
    assert run(["verify", "--images", "photos"]) == 4
    assert "not a file" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
@pytest.mark.parametrize("name", ["deploy", "engines", "cache", ".bundle.json.lock"])
def test_folders_outside_the_bundle_are_not_written(received, name, capsys):
    mine = received.parents[1] / "mine"
    if (received / name).is_dir():
        (received / name).rename(mine)
    elif name == ".bundle.json.lock":
        mine.write_text("mine")
        (received / name).unlink(missing_ok=True)
    else:
        mine.mkdir()
    before = [*mine.rglob("*")], mine.is_file() and mine.read_text()
    (received / name).symlink_to(mine)
    assert run(["quantize", "--images", "photos"]) == 4
    assert f"{received.name}/{name} leads out of the bundle" in capsys.readouterr().err
    assert ([*mine.rglob("*")], mine.is_file() and mine.read_text()) == before


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_manifest_that_is_a_link_is_replaced(received, no_gpu):
    pytest.importorskip("tensorrt_rtx")
    mine, link = received.parents[1] / "mine.json", received / "bundle.json"
    link.rename(mine)
    link.symlink_to(mine)
    before = mine.read_bytes()
    assert run(["build-trt", "--images", "photos", "--precision", "fp32"]) == 0
    assert mine.read_bytes() == before
    assert not link.is_symlink()
    assert link.read_bytes() != before


def test_suite_reads_no_settings_of_the_bundle(received):
    (received / "pytest.ini").write_text("[pytest]\naddopts = -p trap\npythonpath = .\n")
    (received.parents[1] / "trap.py").rename(received / "trap.py")
    page = (DOCS / "suite.md").read_text(encoding="utf-8")
    _, line, _ = re.split("(?<=\n)(pytest --deploykit-bundle=.*)", page, maxsplit=1)
    line = line.replace("artifacts/dpn92", str(received)).replace("./bird_photos", "photos")
    command = [sys.executable, "-m", *line.split(), "--co", "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "colours::files" in done.stdout, done.stderr
    assert not Path(TRAP).exists()


def test_created_in_the_future_is_announced(received, capsys):
    own = received.with_name("own")
    shutil.copytree(received, own)
    forge(received, created="2999-01-01T00:00:00+00:00")
    assert run(["verify", "--self-test"]) == 0
    said = capsys.readouterr().err
    assert "using the newest of 2 bundles: artifacts/colours (--bundle chooses)" in said


def test_checkpoint_of_the_user_runs_no_code(received, capsys):
    weights_like(received, Payload())
    mine = str(received / "best_model.pth")
    assert run(["verify", "--images", "photos", "--arch", "dpn92", "--ckpt", mine]) == 4
    assert "loading it would run code" in capsys.readouterr().err
    assert not Path(TRAP).exists()


def test_passport_of_another_engine_is_refused(built_engine, tmp_path):
    folder = tmp_path / "colours"
    shutil.copytree(built_engine.bundle.folder, folder)
    passport = folder / f"{built_engine.engine}.json"
    content = json.loads(passport.read_text())
    for change in ({"precision": "fp32"}, {"engine_sha256": "0" * 64}):
        passport.write_text(json.dumps(content | change))
        name = passport.relative_to(folder).as_posix()
        forge(folder, files={name: msgspec.to_builtins(record_file(passport))})
        with pytest.raises(BundleError, match="is not this engine's"):
            engines_of(open_bundle(folder))


def test_golden_answers_run_no_code(received, capsys):
    path = received / "golden.npz"
    np.savez(path, images=np.array([Payload()], dtype=object), logits=np.zeros((1, 3), np.float32))
    forge(received, files={"golden.npz": msgspec.to_builtins(record_file(path))})
    assert run(["verify", "--self-test"]) == 4
    assert not Path(TRAP).exists()


@pytest.mark.parametrize("twice", [False, True])
def test_graph_metadata_must_match_the_manifest(received, capsys, twice):
    def change(graph):
        if not twice:
            del graph.metadata_props[:]
        graph.metadata_props.add(key="deploykit.labels", value='["a"]')

    change_graph(received, change)
    assert run(["verify", "--self-test"]) == 4
    # Of two values it is the runtime's to choose one, so that each must be the manifest's.
    assert "but the manifest says" in capsys.readouterr().err


def test_graph_loads_no_library(received, capsys):
    def call_a_stranger(graph):
        graph.opset_import.add(domain="evil", version=1)
        graph.graph.node[0].domain = "evil"

    change_graph(received, call_a_stranger)
    assert run(["verify", "--self-test"]) == 4


@pytest.mark.parametrize(
    ("command", "location"),
    [
        *((command, "pipe") for command in COMMANDS),
        *(("predict photos", location) for location in ("x.bin", "../x.bin", "/etc/passwd")),
    ],
)
def test_graph_weights_in_other_files_are_not_read(received, command, location, capsys, no_gpu):
    """Beside the graph they are in no hash, so that they can change the answers of a proven one."""
    for graph in ("deploy/fp32.onnx", "model.onnx"):
        change_graph(received, partial(refer, location=location), graph)
    (received / "deploy" / "x.bin").write_bytes(bytes(10**5))
    if hasattr(os, "mkfifo"):
        os.mkfifo(received / "deploy" / "pipe")  # who opens it waits without end
    assert run(command.split()) == 4
    captured = capsys.readouterr()
    assert "weights in a file beside it" in captured.out + captured.err


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "openvino"])
def test_graph_weights_in_other_files_are_not_read_by_load(received, runtime):
    pytest.importorskip(runtime.partition("-")[0])
    change_graph(received, partial(refer, location="secret.bin"))
    with pytest.raises(BundleError, match="weights in a file beside it"):
        deploykit.load(received, runtime=runtime)


def test_inspect_tells_weights_in_other_files(received, capsys):
    change_graph(received, partial(refer, location="secret.bin"))
    assert run(["inspect", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["result"]["files"]["deploy/fp32.onnx"] == "refused"
    assert run(["inspect", str(received / "deploy" / "fp32.onnx")]) == 4
    assert "weights in a file beside it" in capsys.readouterr().err


def refer(graph, location):
    """Let the largest weight of a graph be in another file."""
    weight = max(graph.graph.initializer, key=lambda item: len(item.raw_data))
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)


def change_graph(folder, change, name="deploy/fp32.onnx"):
    """Change a graph; its proofs, which are as easily forged, are of the changed one."""
    path = folder / name
    graph = onnx.load(path)
    change(graph)
    path.write_bytes(graph.SerializeToString())
    record = msgspec.to_builtins(record_file(path))
    verdicts = json.loads((folder / "bundle.json").read_text())["verdicts"]
    for each in verdicts:
        if each["graph"] == name:
            each["graph_sha256"] = record["sha256"]
    forge(folder, files={name: record}, verdicts=verdicts)


def mended():
    return Finding(stage="normalise", message="wrong", hint="x", options=(("--std", "1,1,1"),))


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_shown_commands_are_quoted(system, monkeypatch):
    monkeypatch.setattr("deploykit.system.text.os", SimpleNamespace(name=system))
    line = command_line(["deploykit", "verify", "--arch", SHELL_CODE, "--ckpt", "a\x03b\u2028c"])
    assert line.isprintable()
    if system == "posix":
        words = shlex.split(line)
        assert words[:4] == ["deploykit", "verify", "--arch", SHELL_CODE.replace("\n", "?")]
    else:
        quoted = line.removeprefix("deploykit verify --arch ")
        assert quoted.count('"') == 4  # of two words, none ends before its own end
        assert not {"$", "`", "%", "\u201c"} & set(quoted)


def test_shown_commands_quote_bundle_values(received, posix_shell):
    forge(
        received,
        architecture={"name": SHELL_CODE + ":Net", "args": {SHELL_CODE: SHELL_CODE}},
        checkpoint={"path": f"/{SHELL_CODE}"},
        images=f"/{SHELL_CODE}",
    )
    words = shlex.split(export_command(open_bundle(received), [mended()]), comments=True)
    plain = SHELL_CODE.replace("\n", "?")
    options = dict(zip(words[2::2], words[3::2], strict=False))
    assert options["--arch"] == plain + ":Net"
    assert (options["--ckpt"], options["--images"]) == (f"/{plain}", f"/{plain}")
    assert options["--std"] == "1,1,1"


def test_shown_commands_quote_passport_values(built_engine, tmp_path, posix_shell):
    path = tmp_path / "x.engine.json"
    engine = built_engine.bundle.folder / built_engine.engine
    content = json.loads(engine.with_name(f"{engine.name}.json").read_text())
    path.write_text(json.dumps(content | {"targets": [SHELL_CODE]}))
    words = shlex.split(how_to_build_again(read_passport(path)))
    assert words[words.index("--target") + 1] == SHELL_CODE.replace("\n", "?")


def test_pages_escape_bundle_values(received):
    markup = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    labels = {"names": [markup, "green", "red"], "source": markup}
    forge(received, labels=labels, architecture={"name": f"{markup}:Net"}, name=markup)
    for path in (received / "model.onnx", received / "deploy" / "fp32.onnx"):
        graph = onnx.load(path)
        for entry in graph.metadata_props:
            if entry.key == "deploykit.labels":
                entry.value = open_bundle(received).manifest.labels.metadata["deploykit.labels"]
        onnx.save(graph, path)
        name = path.relative_to(received).as_posix()
        forge(received, files={name: msgspec.to_builtins(record_file(path))})
    run(["verify", "--images", "photos", "--html", "page.html"])
    run(["predict", "photos", "--runtime", "onnxruntime-cpu", "--html", "rows.html"])
    for page in ("page.html", "rows.html"):
        text = Path(page).read_text(encoding="utf-8")
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "Content-Security-Policy" in text
