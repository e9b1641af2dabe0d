"""``deploykit demo``: the whole flow, whose folder it takes, and how it ends when a step fails."""

import contextlib
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from deploykit.commands.app import run
from deploykit.commands.demo import cli as demo
from deploykit.commands.demo import images as demo_images

STEPS = ("train", "export", "verify", "predict")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def few_photos(monkeypatch):
    monkeypatch.setattr(demo_images, "TRAIN_CROPS", 6)
    monkeypatch.setattr(demo_images, "TEST_CROPS", 3)


@pytest.fixture
def steps(few_photos, monkeypatch):
    """The steps that ran, of which ``verify`` ends with the ``code`` that is put in."""
    ran = {"code": 0, "names": []}

    def pretend(command, *, stdout, check):
        _, _, _, name, *_ = command
        ran["names"].append(name)
        return subprocess.CompletedProcess(command, ran["code"] if name == "verify" else 0)

    monkeypatch.setattr(demo.subprocess, "run", pretend)
    return ran


def assert_whole_flow(out, folder):
    assert out.index("best epoch") < out.index("verified on") < out.index("PASSED")
    assert "That was the whole flow" in out
    rows = (folder / "predictions.csv").read_text(encoding="utf-8-sig").splitlines()
    assert len(rows) == 1 + len(list((folder / "photos" / "test").rglob("*.jpg")))
    assert (folder / "artifacts" / "resnet_cifar96" / "bundle.json").is_file()


def test_demo_whole_flow_on_few_images(few_photos, monkeypatch, capfd, tmp_path):
    """The steps in one process, which imports torch once; the slow test has each in its own."""
    options = ("--arch", "resnet_cifar96", "--epochs", "1", "--batch-size", "8")
    real_stdout = sys.stdout

    def run_here(command, *, stdout, check):
        python, *module = command[:3]
        assert (python, module) == (sys.executable, ["-m", "deploykit"])
        with contextlib.redirect_stdout(real_stdout):  # a process of its own has it
            return subprocess.CompletedProcess(command, run(command[3:]))

    monkeypatch.setattr(demo, "_TRAINING", options)
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=run_here))
    code = run(["demo"])
    captured = capfd.readouterr()
    assert code == 0, captured.err
    assert_whole_flow(captured.out, tmp_path / "demo")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo_whole_flow_with_defaults(capfd, tmp_path):
    code = run(["demo"])
    captured = capfd.readouterr()
    assert code == 0, captured.err
    assert_whole_flow(captured.out, tmp_path / "demo")
    accuracy = float(captured.out.rpartition("accuracy  ")[2].partition(" %")[0])
    assert accuracy >= 85


def test_demo_refuses_a_foreign_folder(steps, capsys, tmp_path):
    mine = tmp_path / "demo" / "best_model.pth"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    assert run(["demo"]) == 2
    assert "demo has files that are not the demo's" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"
    assert list(mine.parent.iterdir()) == [mine]
    assert steps["names"] == []


def test_demo_takes_an_empty_folder_and_its_own(steps, tmp_path):
    (tmp_path / "demo").mkdir()
    assert run(["demo"]) == 0
    (tmp_path / "demo" / "best_model.pth").write_bytes(b"an earlier demo's")
    assert run(["demo"]) == 0
    assert steps["names"] == [*STEPS, *STEPS]


def test_demo_refuses_a_file_as_folder(steps, capsys, tmp_path):
    (tmp_path / "demo").write_text("mine")
    assert run(["demo"]) == 2
    assert "The demo cannot write to demo (" in capsys.readouterr().err


def test_demo_without_scikit_image_writes_nothing(steps, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert run(["demo"]) == 5
    assert 'pip install "deploykit[demo]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        (3, 3, "failed with exit code 3: deploykit verify --images "),
        (1, 1, "failed with exit code 1: deploykit verify --images "),
        (130, 130, "Interrupted in the step: deploykit verify --images "),
        (-signal.SIGINT, 130, "Interrupted in the step: deploykit verify --images "),
        (-signal.SIGTERM, 1, f"failed with exit code -{signal.SIGTERM.value}: deploykit verify "),
        (0xC000013A, 130, "Interrupted in the step: deploykit verify --images "),
        (0xC0000005, 1, "failed with exit code 3221225477: deploykit verify --images "),
    ],
)
def test_demo_exit_code_of_failed_step(steps, capsys, code, expected, said):
    steps["code"] = code
    assert run(["demo"]) == expected
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert steps["names"] == ["train", "export", "verify"]

    assert run(["demo", "--json"]) == expected
    answer = json.loads(capsys.readouterr().out)
    assert (answer["command"], answer["exit_code"]) == ("demo", expected)
    assert said in answer["error"]["message"]


def test_demo_json_names_the_commands(steps, capsys):
    assert run(["demo", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert [line.split()[1] for line in result["commands"]] == list(STEPS)
