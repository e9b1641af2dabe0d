"""The plugin in runs that did not ask for it, and questions that make no sense."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
from suite_runs import run_plain_pytest, run_pytest, run_suite

#: What a plain pytest loads already is no fault of ours.
FOREIGN = """
import json, os, sys
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
import pytest
before = {*sys.modules}
code = pytest.main(["-p", "deploykit.suite.plugin", "-p", "no:cacheprovider", *sys.argv[1:]])
heavy = ("numpy", "msgspec", "PIL", "torch", "onnx", "onnxruntime", "rich")
print(json.dumps([int(code), sorted(m for m in sys.modules if m.startswith("deploykit")),
                  [m for m in heavy if m in sys.modules and m not in before]]))
"""


def loaded_by(cwd, *arguments):
    process = subprocess.run(
        [sys.executable, "-c", FOREIGN, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def test_pytest_loads_the_plugin_wherever_deploykit_is_installed():
    (entry,) = importlib.metadata.entry_points(group="pytest11", name="deploykit")
    assert entry.value == "deploykit.suite.plugin"


@pytest.mark.parametrize("arguments", [["--help"], ["."]])
def test_other_runs_load_nothing_but_the_plugin(tmp_path, arguments):
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    pass\n", encoding="utf-8")
    code, ours, heavy = loaded_by(tmp_path, *arguments)
    assert code == 0
    assert ours == ["deploykit", "deploykit.suite", "deploykit.suite.plugin"]
    assert heavy == []


def test_the_options_are_all_under_our_name(tmp_path):
    ours, plain = (
        {word for line in run.stdout.splitlines() for word in line.split()[:1] if word[:1] == "-"}
        for run in (run_pytest(tmp_path, "--help"), run_plain_pytest(tmp_path, "--help"))
    )
    assert len(ours - plain) == 9
    assert all(option.startswith("--deploykit-") for option in ours - plain)


def test_other_runs_are_not_judged(tmp_path, exported_bundle):
    """A project may give the bundle in its addopts."""
    (tmp_path / "test_mine.py").write_text(
        "import pytest\n\n@pytest.mark.skip\ndef test_mine():\n    pass\n", encoding="utf-8"
    )
    run = run_pytest(tmp_path, "--deploykit-bundle", exported_bundle.folder)
    assert run.returncode == 0
    assert "deploykit" not in run.stdout.partition("rootdir")[2].partition("\n")[2]


def test_without_a_bundle_the_suite_is_wrong_usage(tmp_path):
    run = run_pytest(tmp_path, "--pyargs", "deploykit.suite")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "The parity suite needs a bundle to test." in run.stderr
    assert "--deploykit-bundle" in run.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--deploykit-bundle", "nowhere/dpn92"], "is not a bundle"),
        (["--deploykit-runtime", "onnxruntime-gpu"], "There is no runtime 'onnxruntime-gpu'"),
        (["--deploykit-precision", "int8"], "has no int8 graph"),
        (["--deploykit-precision", "half"], "There is no precision 'half'"),
        (["--deploykit-max-images", "-1"], "takes 0 or more, not -1"),
        (["--deploykit-ckpt", "none.pth"], "Name it as well: --arch"),
        (["--deploykit-arch", "none.py:Net"], "There is no file none.py"),
        (["--deploykit-transform", "none.py:size"], "There is no file none.py"),
    ],
)
def test_options_that_make_no_sense(tmp_path, exported_bundle, photo_folder, options, message):
    run = run_suite(tmp_path, exported_bundle, photo_folder, *options)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("folder", "message"), [("none", "none does not exist."), ("empty", "No image file in ")]
)
def test_images_that_are_not_there_are_wrong_usage(tmp_path, exported_bundle, folder, message):
    (tmp_path / "empty").mkdir()
    run = run_suite(tmp_path, exported_bundle, tmp_path / folder)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in run.stderr
    assert "Traceback" not in run.stderr
