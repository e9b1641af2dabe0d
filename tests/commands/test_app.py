"""The command line from outside: arguments in, streams and exit code out."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit
from deploykit.commands.app import COMMANDS, run


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def export_arguments(network_file, checkpoint, photo_folder):
    return (
        *("export", "--arch", f"{network_file}:Net", "--ckpt", checkpoint),
        *("--classes", photo_folder, "--input-size", "16x16"),
    )


def read_csv(path):
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_commands_with_summaries(cli, option):
    code, out, _ = cli(option)
    assert code == 0
    for name, entry in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(entry.summary)}$", out, re.MULTILINE)


def test_help_without_arguments(cli):
    code, out, err = cli()
    assert code == 0
    assert "Usage: deploykit" in out + err


@pytest.mark.parametrize("command", COMMANDS)
def test_command_help_has_groups_and_example(cli, command):
    code, out, _ = cli(command, "-h")
    assert code == 0
    assert out.splitlines()[2] == f"  {COMMANDS[command].summary}"
    general = out.index("General options:")
    assert general < out.index("--json") < out.index("--verbose") < out.index("-h, --help")
    assert out.endswith(f"  Example:\n    {COMMANDS[command].example}\n")
    assert all(len(line) <= 80 for line in out.splitlines())


def test_completion_of_commands_and_bundles(cli, tmp_path):
    bundle = tmp_path / "artifacts" / "sparrow"
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").touch()
    (tmp_path / "artifacts" / ".failed").mkdir()
    for words, completed in (
        ("deploykit pre", "predict"),
        ("deploykit predict --bundle ", "sparrow"),
        ("deploykit verify --runtime openv", "openvino"),
    ):
        process = subprocess.run(
            [sys.executable, "-m", "deploykit"],
            env={
                **os.environ,
                "_DEPLOYKIT_COMPLETE": "complete_bash",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split(" ")) - 1),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert process.stdout.split() == [completed]


def test_version_option(cli):
    code, out, _ = cli("--version")
    assert code == 0
    assert re.fullmatch(r"deploykit \d+\.\d+\.\d+\n", out)


def test_export_verify_and_predict_in_sequence(cli, export_arguments, photo_folder, no_openvino):
    code, out, err = cli(*export_arguments)
    assert code == 0, err
    assert "passed" in out
    assert "blue, green, red" in out
    code, out, err = cli("verify", "--images", photo_folder)
    assert code == 0, err
    assert out.endswith("PASSED\n")
    assert "0 of 45, at most 6.4 %" in out
    code, out, err = cli("predict", photo_folder)
    assert code == 0, err
    assert "45 rows: 45 predicted" in out
    assert "proof     proven: 0 of " in out
    assert "accuracy" in out
    assert "onnxruntime-cpu" in out
    rows = read_csv("predictions.csv")
    assert len(rows) == 45
    assert rows[0]["path"] == "blue/00.png"
    assert rows[0]["label"] == rows[0]["label_1"] == "blue"


@pytest.mark.parametrize("command", ["export", "verify", "predict", "archs"])
def test_json_is_alone_on_stdout(cli, command, export_arguments, exported_bundle, photo_folder):
    arguments = {
        "export": export_arguments,
        "verify": ("verify", "--bundle", exported_bundle.folder, "--self-test"),
        "predict": ("predict", photo_folder, "--bundle", exported_bundle.folder),
        "archs": ("archs", "dpn"),
    }[command]
    code, out, _ = cli(*arguments, "--json")
    answer = json.loads(out)
    assert code == 0
    assert set(answer) == {"schema", "command", "exit_code", "result"}
    assert (answer["schema"], answer["command"], answer["exit_code"]) == (1, command, 0)


def test_json_of_a_verification_has_the_numbers(cli, exported_bundle, no_openvino):
    _, out, _ = cli("verify", "--self-test", "--bundle", exported_bundle.folder, "--json")
    result = json.loads(out)["result"]
    assert result["passed"] is True
    (verdict,) = result["verdicts"]
    assert verdict["passed"] is True
    assert verdict["measurement"]["images"] == 8
    assert verdict["candidate"]["graph"] == "deploy/fp32.onnx"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nonsense"], 2, "No such command"),
        (["export"], 2, "Missing option '--arch'"),
        (["export", "--arch", "dpn92", "--ckpt", "x.pth", "--wrong"], 2, "No such option"),
        (["predict", ".", "--batch-size", "0"], 2, "--batch-size"),
        (["predict", ".", "--precision", "fp64"], 2, "'fp64' is no precision; there are fp32"),
        (["export", "--arch", "dpn29", "--ckpt", "x.pth"], 2, "dpn92"),
        (["export", "--arch", "dpn92", "--ckpt", "x.pth", "--resize", "big"], 2, "--resize takes"),
        (
            ["export", "--arch", "dpn92", "--ckpt", "x.pth", "--golden", "no"],
            2,
            "there are photos, generated",
        ),
        (["export", "--arch", "dpn92", "--ckpt", "x.pth", "--name", "a/b"], 2, "cannot name"),
        (["verify", "--self-test", "--images", "."], 2, "it takes no --images"),
        (["export", "--arch", "dpn92", "--ckpt", "x.pth"], 4, "x.pth"),
        (["predict", "."], 4, "There is no bundle"),
        (["verify", "--bundle", "nowhere"], 4, "There is no bundle nowhere"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_mistakes_are_one_message_with_exit_code(cli, tmp_path, arguments, code, message, as_json):
    found, out, err = cli(*arguments, *(["--json"] if as_json else []))
    assert found == code
    assert "Traceback" not in err
    if as_json:
        answer = json.loads(out)
        assert answer["exit_code"] == code
        assert message in answer["error"]["message"] + (answer["error"]["hint"] or "")
    else:
        assert out == ""
        assert err.startswith("error: ")
        assert message in err
    assert list(tmp_path.iterdir()) == []


def test_verify_failed_exits_with_3_and_the_numbers(cli, exported_bundle, network_file, tmp_path):
    import torch

    from deploykit.models.registry import resolve_architecture

    module = resolve_architecture(f"{network_file}:Net", allow_user_code=True).build(3)
    torch.save(module.state_dict(), tmp_path / "other.pth")
    folder = tmp_path / "colours"
    shutil.copytree(exported_bundle.folder, folder)
    arguments = ("verify", "--bundle", folder, "--arch", f"{network_file}:Net")
    code, out, err = cli(*arguments, "--ckpt", tmp_path / "other.pth")
    assert code == 3
    assert "FAILED" in out
    assert "flip" in out
    assert "Traceback" not in err
    code, out, _ = cli(*arguments, "--ckpt", tmp_path / "other.pth", "--json")
    assert code == 3
    answer = json.loads(out)
    assert answer["exit_code"] == 3
    assert answer["result"]["passed"] is False


def test_missing_device_exits_with_5(cli, exported_bundle, photo_folder, no_gpu, tmp_path):
    code, _, err = cli(
        *("predict", photo_folder, "--bundle", exported_bundle.folder),
        *("--runtime", "onnxruntime-cuda"),
    )
    assert code == 5
    assert "onnxruntime-cpu" in err
    assert list(tmp_path.iterdir()) == []


def test_missing_package_exits_with_5(cli, checkpoint, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("deploykit.models")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = cli("export", "--arch", "dpn92", "--ckpt", checkpoint)
    assert code == 5
    assert 'pip install "deploykit[export]"' in err


def test_strict_exits_with_6_and_writes_all_rows(cli, exported_bundle, photo_folder, tmp_path):
    shutil.copytree(photo_folder / "red", tmp_path / "photos")
    (tmp_path / "photos" / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    arguments = ("predict", tmp_path / "photos", "--bundle", exported_bundle.folder)
    assert cli(*arguments, "--output", "rows.jsonl")[0] == 0
    code, out, _ = cli(*arguments, "--output", "rows.jsonl", "--strict")
    assert code == 6
    assert "1 failed" in out
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert len(rows) == 15
    assert [row["path"] for row in rows if row["status"] != "ok"] == ["07.png"]


def test_predict_without_readable_image_exits_with_4(cli, exported_bundle, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    code, _, err = cli("predict", tmp_path / "photos", "--bundle", exported_bundle.folder)
    assert code == 4
    assert "has a prediction, of 1: 1 truncated" in err
    assert [row["path"] for row in read_csv("predictions.csv")] == ["a.png"]


def test_quiet_says_nothing(cli, exported_bundle, photo_folder):
    code, out, err = cli("predict", photo_folder, "--bundle", exported_bundle.folder, "--quiet")
    assert (code, out, err) == (0, "", "")
    assert len(read_csv("predictions.csv")) == 45


def test_artifacts_from_environment(cli, exported_bundle, photo_folder, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_ARTIFACTS", str(exported_bundle.folder.parent))
    code, _, err = cli("predict", photo_folder)
    assert code == 0
    assert "using bundle" in err


def test_bug_exits_with_1(cli, monkeypatch, exported_bundle):
    def broken(*arguments):
        return 1 / 0

    monkeypatch.setattr("deploykit.commands.verify.run.read_golden", broken)
    code, _, err = cli("verify", "--self-test", "--bundle", exported_bundle.folder)
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "-v shows where" in err
    assert "Traceback" not in err
    _, _, err = cli("verify", "--self-test", "--bundle", exported_bundle.folder, "-v")
    assert "Traceback" in err


def test_ctrl_c_exits_with_130(cli, monkeypatch, exported_bundle):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("deploykit.commands.verify.run.read_golden", interrupt)
    code, _, err = cli("verify", "--self-test", "--bundle", exported_bundle.folder)
    assert code == 130
    assert "Interrupted" in err


def test_train_output_is_taken_by_export(cli, photo_folder, tmp_path, posix_shell):
    code, out, err = cli(
        *("train", photo_folder, "--arch", "densenet", "--input-size", "32"),
        *("--arch-arg", "block_config=1,1", "--arch-arg", "growth_rate=4"),
        *("--epochs", "1", "--batch-size", "8", "--output", tmp_path / "run"),
    )
    assert code == 0, err
    assert "best epoch" in out
    assert {"best_model.pth", "classes.txt", "curves.png"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    (following,) = (line for line in out.splitlines() if line.startswith("deploykit export"))
    code, out, err = cli(*shlex.split(following)[1:])
    assert code == 0, err
    assert "resize 32x32" in out
    assert "blue, green, red (classes.txt beside the checkpoint)" in out


def test_predict_on_a_console_without_unicode(exported_bundle, tmp_path):
    (tmp_path / "鹰.png").write_bytes(b"")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "deploykit", "predict", str(tmp_path / "鹰.png")),
            *("--bundle", str(exported_bundle.folder), "--output", str(tmp_path / "rows.csv")),
        ],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 4
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["gbk", "cp1252", "ascii"])
def test_help_and_tables_in_narrow_encodings(exported_bundle, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    for arguments in (
        ["--help"],
        ["verify", "--self-test", "--bundle", str(exported_bundle.folder)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "deploykit", *arguments],
            capture_output=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert b"\\u" not in done.stdout
        done.stdout.decode(encoding)


def test_root_script_is_deploykit():
    script = Path(deploykit.__file__).parents[1] / "cli.py"
    if not script.exists():
        pytest.skip("not run from a checkout")
    done = subprocess.run(
        [sys.executable, str(script), "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("deploykit ")
