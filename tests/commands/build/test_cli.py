"""``deploykit build-trt``, and predictions with what it built, from outside."""

import json
import shutil
import subprocess
import sys

import pytest

from deploykit.commands.app import run
from deploykit.console.options import parsed_bytes
from deploykit.errors import UsageError

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "numpy")

pytestmark = pytest.mark.usefixtures("rtx")


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path, no_gpu):
    """Run a command in an empty folder, without a GPU; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def folder(tmp_path, exported_bundle):
    """A copy of the exported bundle where the commands look for one."""
    folder = tmp_path / "artifacts" / "colours"
    shutil.copytree(exported_bundle.folder, folder)
    return folder


@pytest.fixture
def engine_folder(tmp_path_factory, built_engine):
    """A copy of the bundle with an engine, outside the folder where the commands run."""
    folder = tmp_path_factory.mktemp("engines") / "colours"
    shutil.copytree(built_engine.bundle.folder, folder)
    return folder


def test_build_trt_without_options(cli, folder, tmp_path):
    code, out, err = cli("build-trt")
    assert code == 0, err
    assert "rehearsed on CPU, 23 photos of" in out
    assert "runs on  compute capability sm80 or newer, with tensorrt_rtx" in out
    assert "\ndeploykit verify --bundle artifacts/colours --runtime tensorrt_rtx" in out
    assert "building with tensorrt_rtx, which needs no GPU to build" in err
    (engine,) = (folder / "engines").glob("*.engine")
    assert str(engine.relative_to(tmp_path)) in out


def test_build_trt_json_has_the_passport(cli, folder):
    code, out, _ = cli("build-trt", "--target", "sm89", "--target", "sm86", "--json")
    assert code == 0
    answer = json.loads(out)
    assert (answer["command"], answer["exit_code"]) == ("build-trt", 0)
    result = answer["result"]
    passport = result["passport"]
    assert passport == json.loads((folder / f"{result['engine']}.json").read_text())
    assert (passport["flavour"], passport["targets"]) == ("tensorrt_rtx", ["sm86", "sm89"])
    assert passport["profile"] == {"min_batch": 1, "opt_batch": 8, "max_batch": 32}
    assert passport["proof"]["kind"] == "rehearsed"
    assert result["tuning"]["trials"] == 1
    assert (result["audit"], result["verification"]) == (None, None)


def test_build_trt_passes_its_options_on(cli, folder):
    code, out, err = cli(
        *("build-trt", "--precision", "fp32", "--flavour", "tensorrt_rtx", "--workspace", "1GiB"),
        *("--min-batch", "2", "--opt-batch", "4", "--max-batch", "16", "--bundle", folder),
    )
    assert code == 0, err
    assert "-portable-fp32-b2-4-16-ws1GiB.engine" in out
    assert "batches of 2 to 16 (best at 4)" in out


def test_build_trt_search_images_and_seconds(cli, folder, photo_folder, tmp_path):
    shutil.copytree(photo_folder / "red", tmp_path / "few")
    arguments = ("build-trt", "--images", tmp_path / "few", "--search-seconds", "0", "--json")
    code, out, _ = cli(*arguments)
    assert code == 0
    result = json.loads(out)["result"]
    assert result["tuning"]["searched_images"] == 7
    assert result["passport"]["proof"]["images"]["source"] == str(tmp_path / "few")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--precision", "bf16"], 2, "'bf16' is no precision for engines; there are"),
        (["--precision", "fp64"], 2, "there are fp16, fp32"),
        (["--flavour", "rtx"], 2, "'rtx' is no flavour; there are tensorrt, tensorrt_rtx"),
        (["--target", "sm90"], 2, "There is no target 'sm90'"),
        (["--min-batch", "9"], 2, "got min 9, opt 8, max 32"),
        (["--workspace", "2GB"], 2, "'2GB' is not an amount of memory"),
        (["--search-seconds", "-1"], 2, "--search-seconds"),
        (["--target", "current"], 5, "no NVIDIA driver"),
        (["--flavour", "tensorrt"], 5, "no NVIDIA driver"),
    ],
)
def test_build_trt_mistake_is_one_message(cli, folder, arguments, code, message):
    before = sorted(folder.rglob("*"))
    found, out, err = cli("build-trt", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert sorted(folder.rglob("*")) == before


def test_build_trt_without_tensorrt_exits_with_5(cli, folder, monkeypatch):
    monkeypatch.setattr("deploykit.commands.build.run.installed_flavours", lambda: ())
    code, _, err = cli("build-trt")
    assert code == 5
    assert 'Install it:\npip install "deploykit[rtx]"' in err


def test_build_trt_ctrl_c_exits_with_130(cli, folder, monkeypatch):
    def interrupt(self, event):
        if getattr(event, "stage", "") == "building":
            raise KeyboardInterrupt

    monkeypatch.setattr("deploykit.console.command.Console.progress", interrupt)
    code, _, err = cli("build-trt")
    assert code == 130
    assert "Interrupted" in err
    assert not list(folder.rglob("*.engine*"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("512MiB", 512 * 2**20),
        ("2GiB", 2**31),
        ("1.5 gib", 3 * 2**29),
        (" 64kib ", 2**16),
    ],
)
def test_parsed_bytes_with_units(text, expected):
    assert parsed_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "0GiB", "2", "2GB", "-1MiB", "1e3MiB", "half", "0.0001KiB"])
def test_parsed_bytes_refuses_unclear_amounts(text):
    with pytest.raises(UsageError, match="is not an amount of memory") as caught:
        parsed_bytes(text)
    assert "512MiB or 2GiB" in caught.value.hint


def test_predict_with_engine_without_gpu_exits_with_5(cli, engine_folder, photo_folder, tmp_path):
    arguments = ("predict", photo_folder, "--bundle", engine_folder, "--runtime", "tensorrt_rtx")
    code, out, err = cli(*arguments)
    assert (code, out) == (5, "")
    (line,) = err.splitlines()
    assert line.startswith("error: tensorrt_rtx cannot run here: There is no NVIDIA driver")
    assert line.endswith(" deploy/fp32.onnx on onnxruntime-cpu would run.")
    assert list(tmp_path.iterdir()) == []
    code, out, _ = cli(*arguments, "--json")
    answer = json.loads(out)
    assert (code, answer["exit_code"]) == (5, 5)
    assert answer["error"] == {"message": line.removeprefix("error: "), "hint": None}


def test_predict_with_tensorrt_before_any_build(cli, folder, photo_folder):
    code, _, err = cli("predict", photo_folder, "--bundle", folder, "--runtime", "tensorrt_rtx")
    assert code == 5
    assert len(err.splitlines()) == 1


def test_predict_says_why_no_engine_was_taken(cli, engine_folder, photo_folder):
    code, out, err = cli("predict", photo_folder, "--bundle", engine_folder)
    assert code == 0
    assert "45 predicted" in out
    assert "not taken: engines/tensorrt_rtx-" in err
    assert "deploy/fp32.onnx in fp32 on onnxruntime-cpu, CPU" in err


def test_verify_rehearses_and_refuses_fp16_on_the_cpu(cli, engine_folder, photo_folder):
    named = ("verify", "--bundle", engine_folder, "--images", photo_folder, "--precision", "fp16")
    code, out, _ = cli(*named, "--runtime", "rehearsal", "--json")
    assert code == 0
    (verdict,) = json.loads(out)["result"]["verdicts"]
    assert (verdict["kind"], verdict["candidate"]["runtime"]) == ("rehearsed", "rehearsal")
    code, _, err = cli(*named, "--runtime", "onnxruntime-cpu")
    assert code == 2
    assert "onnxruntime-cpu does not compute in fp16" in err
    code, _, err = cli("verify", "--bundle", engine_folder, "--runtime", "tensorrt_rtx")
    assert code == 5
    assert "no NVIDIA driver" in err


def test_build_trt_help_loads_nothing_heavy():
    code = (
        "import sys; from deploykit.commands.app import run;"
        "assert run(['build-trt', '--help']) == 0;"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "sm89 (RTX 40)" in " ".join(done.stdout.split())
