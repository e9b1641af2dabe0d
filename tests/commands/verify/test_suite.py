"""The pytest plugin: what a run says of bundles that are sound and that are not."""

import dataclasses
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from bundle_files import acknowledged, contents

from deploykit.bundle.folder import open_bundle
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.suite import checks_of
from deploykit.errors import BundleError
from deploykit.inference.candidates import Candidate

PLUGIN = "deploykit.commands.verify.suite"
FP32 = Candidate("deploy/fp32.onnx", "onnxruntime-cpu", "fp32")
#: What a plain pytest loads already is no fault of ours.
FOREIGN = f"""
import json, sys
import pytest
before = {{*sys.modules}}
code = pytest.main(["-p", "{PLUGIN}", "-p", "no:cacheprovider", *sys.argv[1:]])
heavy = ("numpy", "msgspec", "PIL", "torch", "onnx", "onnxruntime", "rich")
print(json.dumps([int(code), sorted(m for m in sys.modules if m.startswith("deploykit")),
                  [m for m in heavy if m in sys.modules and m not in before]]))
"""


def run_python(cwd, *arguments):
    """Run Python in a folder, without any plugin of pytest but its own, and without a GPU."""
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, **alone}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


def run_suite(cwd, bundle, *arguments):
    options = ("-p", PLUGIN, f"--deploykit-bundle={bundle.folder}", "-v")
    return run_python(cwd, "-m", "pytest", *options, *arguments)


@pytest.fixture
def project(tmp_path):
    """A folder with a project's own strict settings, fixtures and tests, and a script."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers --strict-config -W error -p no:cacheprovider\n"
    )
    (folder / "conftest.py").write_text(
        "import pytest\n\n@pytest.fixture(autouse=True)\ndef no_bundle():\n    raise OSError\n"
    )
    (folder / "test_mine.py").write_text(
        "import pytest\n\n@pytest.mark.skip\ndef test_mine():\n    pass\n"
    )
    (folder / "test_script.py").write_text("raise SystemExit('only a script')\n")
    return folder


@pytest.fixture
def request_(photo_folder):
    """Compare the bundle with its own graph on photos."""
    return VerifyRequest(images=photo_folder, runtime="onnxruntime-cpu", keep=False)


@pytest.fixture
def failure():
    """The words in which a check fails."""

    def call(check):
        with pytest.raises(pytest.fail.Exception) as caught:
            check()
        assert not caught.value.pytrace
        return caught.value.msg

    return call


def test_suite_passes_a_sound_bundle(project, bundle, photo_folder, network_file):
    before = contents(bundle)
    photos, arch = f"--deploykit-images={photo_folder}", f"--deploykit-arch={network_file}:Net"
    run = run_suite(project, bundle, photos, arch, "--junitxml=junit.xml")
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    assert contents(bundle) == before
    assert "deploy/fp32.onnx on onnxruntime-cpu: flips 0 of 45, at most 6.4 %" in run.stdout
    assert "45 photos of " in run.stdout
    assert "against torch module" in run.stdout
    cases = {case.get("name"): case for case in ET.parse(project / "junit.xml").iter("testcase")}
    assert {case.get("classname") for case in cases.values()} == {"colours"}
    assert [*cases][:3] == ["files", "model.onnx on onnxruntime-cpu", str(FP32)]
    (measured,) = cases[str(FP32)].iter("property")
    assert measured.get("value").startswith("flips 0 of 45, at most 6.4 %")
    (skipped,) = cases["deploy/fp32.onnx on onnxruntime-cuda"].iter("skipped")
    assert skipped.get("message")


@pytest.mark.slow
def test_suite_says_first_that_a_graph_stands_in(project, bundle, photo_folder, network_file):
    """Before the first test, and above what was measured, with the command that asks the module."""
    run = run_suite(project, bundle, f"--deploykit-images={photo_folder}", "-k", "fp32.onnx")
    assert run.returncode == 0, run.stdout
    before, _, after = run.stdout.partition("collected")
    said = "Compared with model.onnx, not with the checkpoint: the manifest names code of its own"
    assert said in before
    assert said in after.partition("= deploykit =")[2].splitlines()[1]
    lines = before.splitlines()
    command = shlex.split(lines[lines.index("This compares with the checkpoint:") + 1])
    assert command[0] == "pytest"
    again = run_python(project, "-m", *command)
    assert again.returncode == 0, again.stdout
    assert "against torch module" in again.stdout
    assert "not with the checkpoint" not in again.stdout


def test_suite_runs_named_paths_too(project, bundle):
    run = run_suite(project, bundle, "test_mine.py", "-k", "mine or files")
    assert run.returncode == 0, run.stdout
    assert "test_mine.py::test_mine SKIPPED" in run.stdout
    assert "colours::files PASSED" in run.stdout


def test_suite_fails_in_words(project, bundle):
    (bundle.folder / "deploy/fp32.onnx").write_bytes(b"other")
    run = run_suite(project, bundle, "-k", "files or fp32.onnx")
    assert run.returncode == 1
    assert "colours::files FAILED" in run.stdout
    assert f"colours::{FP32} FAILED" in run.stdout
    assert "is not the file that was exported" in run.stdout
    assert not any(word in run.stdout for word in ("Traceback", "another exception", "suite.py"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--deploykit-bundle=nowhere/dpn92", "is not a bundle"),
        ("--deploykit-images=none", "none does not exist."),
        ("--deploykit-max-images=0", "takes 1 or more, not 0"),
        ("--deploykit-runtime=onnxruntime-gpu", "There is no runtime 'onnxruntime-gpu'"),
        ("--deploykit-precision=half", "'half' is no precision"),
        ("--deploykit-precision=int8", "has no int8 graph"),
    ],
)
def test_suite_refuses_impossible_options(tmp_path, exported_bundle, option, message):
    run = run_suite(tmp_path, exported_bundle, option)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_suite_runs_under_xdist(project, bundle):
    pytest.importorskip("xdist")
    run = run_suite(project, bundle, "-p", "xdist", "-n", "2")
    assert run.returncode == 0, run.stdout
    assert f"{FP32}: flips 0 of 45" in run.stdout


def test_plugin_is_registered():
    (entry,) = importlib.metadata.entry_points(group="pytest11", name="deploykit")
    assert entry.value == PLUGIN


@pytest.mark.parametrize("arguments", [["--help"], ["."]])
def test_plugin_loads_nothing_in_other_runs(tmp_path, arguments):
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    pass\n", encoding="utf-8")
    run = run_python(tmp_path, "-c", FOREIGN, *arguments)
    packages = ["deploykit", "deploykit.commands", "deploykit.commands.verify", PLUGIN]
    assert json.loads(run.stdout.splitlines()[-1]) == [0, packages, []]


def test_check_of_candidate_fails_with_flips_and_reasons(bundle, answers, request_, failure):
    answers(FP32.file, lambda logits: logits[:, ::-1])
    words = failure(checks_of(bundle, request_)[str(FP32)])
    assert "30 of 45 images changed their class; at most 0% may" in words
    assert f"flip  {FP32}: " in words
    assert "... and 20 more" in words


def test_check_skips_reference_and_missing_devices(bundle, photo_folder, no_gpu):
    checks = checks_of(bundle, VerifyRequest(images=photo_folder, max_images=4, keep=False))
    with pytest.raises(pytest.skip.Exception, match="no NVIDIA driver"):
        checks["deploy/fp32.onnx on onnxruntime-cuda"]()
    with pytest.raises(pytest.skip.Exception, match="it is the reference"):
        checks["model.onnx on onnxruntime-cpu"]()


def test_check_of_files_compares_golden_answers(bundle, request_, failure):
    golden = bundle.folder / "golden.npz"
    with np.load(golden) as data:
        images, logits = data["images"], data["logits"]
    np.savez(golden, images=images, logits=logits[:, ::-1])
    changed = acknowledged(bundle, "golden.npz")
    words = failure(checks_of(changed, request_)["files"])
    assert "answers recorded in golden.npz" in words


def test_check_of_files_refuses_outdated_engines(engine_bundle, request_):
    files = len(engine_bundle.manifest.files)
    ((_, told),) = checks_of(engine_bundle, request_)["files"]()
    assert told.startswith(f"{files} files are as")
    graph = engine_bundle.folder / "deploy/fp16.onnx"
    graph.write_bytes((engine_bundle.folder / "deploy/fp32.onnx").read_bytes())
    outdated = checks_of(acknowledged(engine_bundle, "deploy/fp16.onnx"), request_)
    with pytest.raises(BundleError, match=r"was built from another deploy/fp16\.onnx"):
        outdated["files"]()


def test_check_of_files_without_copied_engines(engine_bundle, request_):
    for file in (engine_bundle.folder / "engines").iterdir():
        file.unlink()
    assert checks_of(open_bundle(engine_bundle.folder), request_)["files"]()


@pytest.mark.parametrize(
    ("deviation", "passes"), [("[0.229, 0.224, 0.225]", True), ("[0.5, 0.5, 0.5]", False)]
)
def test_check_of_stages_compares_the_training_transform(
    tmp_path, bundle, request_, failure, deviation, passes
):
    code = tmp_path / "training.py"
    code.write_text(
        "from torchvision import transforms\n\n\n"
        "def transform():\n"
        "    return transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor(),\n"
        f"        transforms.Normalize([0.485, 0.456, 0.406], {deviation})])\n",
        encoding="utf-8",
    )
    staged = dataclasses.replace(request_, stages=True, transform=f"{code}:transform")
    check = checks_of(bundle, staged)["stages"]
    if passes:
        assert "stages, each within its tolerance" in dict(check())["deploykit"]
    else:
        assert "FOUND  normalise: " in failure(check)
