"""No way to get exit code 0 with a comparison that failed, is empty, or is not finite."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_reports import JOBS
from PIL import Image

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import update_manifest
from deploykit.commands.verify.junit import JUNIT_MARK
from deploykit.errors import GraphError
from deploykit.html.document import page_mark
from deploykit.runtime._onnxruntime import OnnxRuntimeSession

CHANGES = {
    "other classes": np.negative,
    "NaN": lambda logits: np.full_like(logits, np.nan),
    "one infinity": lambda logits: np.concatenate([logits[:, :-1], logits[:, -1:] * np.inf], 1),
    "zeros": np.zeros_like,
    "ones": np.ones_like,
    "a little off": lambda logits: logits + np.float32(0.05) * np.arange(3, dtype=np.float32),
    "huge": lambda logits: logits * np.float32(1e30),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("graph", ["model.onnx", "deploy/fp32.onnx"])
@pytest.mark.parametrize("how", [[], ["--lowest-margins", "5"], ["--max-images", "1"], ["--json"]])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_verify_wrong_answers_exit_with_3(
    verify, folder, photo_folder, answers, change, graph, how
):
    """On the candidate's side, and on the reference's."""
    answers(graph, change)
    code, out, _ = verify("--images", photo_folder, *how)
    assert code == 3
    if "--json" in how:
        assert json.loads(out)["result"]["passed"] is False
    else:
        assert out.rstrip().endswith("FAILED")
    open_bundle(folder)  # what is kept of it can be read again


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_self_test_wrong_answers_exit_with_3(verify, answers, change):
    answers("deploy/fp32.onnx", change)
    assert verify("--self-test")[0] == 3


@pytest.mark.parametrize("change", [np.zeros_like, np.ones_like, lambda x: x * np.nan])
@pytest.mark.parametrize("how", [[], ["--lowest-margins", "5"]])
def test_verify_equally_broken_sides_exit_with_3(verify, photo_folder, monkeypatch, change, how):
    compute = OnnxRuntimeSession._run
    monkeypatch.setattr(
        OnnxRuntimeSession, "_run", lambda self, images: change(compute(self, images))
    )
    code, out, _ = verify("--images", photo_folder, *how)
    assert (code, out.rstrip().endswith("FAILED")) == (3, True)


@pytest.mark.parametrize("how", [["--self-test"], [], ["--json"]])
def test_verify_without_candidate_exits_with_3(verify, folder, photo_folder, monkeypatch, how):
    monkeypatch.setattr("deploykit.commands.verify.run.named_candidates", lambda *arguments: [])
    images = [] if "--self-test" in how else ["--images", photo_folder]
    before = open_bundle(folder).manifest
    code, out, _ = verify(*images, *how)
    assert code == 3
    if "--json" in how:
        assert json.loads(out)["result"]["passed"] is False
    else:
        assert "UNPROVEN  no candidate was compared" in out
    assert open_bundle(folder).manifest == before


def test_verify_without_deploy_graph_exits_with_4(verify, folder, photo_folder):
    update_manifest(folder, lambda m: msgspec.structs.replace(m, deploy={}))
    assert verify("--images", photo_folder)[0] == 4
    assert verify("--self-test")[0] == 4


def make_odd_folder(path, kind):
    path.mkdir()
    if kind == "other files":
        (path / "notes.txt").write_text("no photo")
    elif kind == "unreadable":
        (path / "a.png").write_bytes(b"")
        (path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    return path


@pytest.mark.parametrize("kind", ["empty", "other files", "unreadable"])
@pytest.mark.parametrize("how", [[], ["--lowest-margins", "5"], ["--max-images", "5"], ["--json"]])
def test_verify_without_image_exits_with_4(verify, tmp_path, kind, how):
    code, out, err = verify("--images", make_odd_folder(tmp_path / "photos", kind), *how)
    assert code == 4
    assert "Traceback" not in err
    assert json.loads(out)["error"]["hint"] if "--json" in how else out == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--images", "nowhere"], 4),
        (["--lowest-margins", "0"], 2),
        (["--lowest-margins", "-3"], 2),
        (["--lowest-margins", "many"], 2),
        (["--max-images", "0"], 2),
        (["--lowest-margins", "5", "--max-images", "5"], 2),
        (["--lowest-margins", "5", "--self-test"], 2),
        (["--runtime", "tensorflow"], 2),
        (["--runtime", "onnxruntime-cuda"], 5),
        (["--runtime", "onnxruntime-cpu", "--precision", "fp16"], 2),
        (["--precision", "fp16"], 4),
        (["--runtime", "tensorrt_rtx"], 4),
        (["--engine", "none.engine"], 4),
        (["--transform", "train.py:transform"], 2),
        (["--trained-accuracy", "0.9"], 2),
        (["--stages", "--trained-accuracy", "90"], 2),
        (["--self-test", "--stages"], 2),
        (["--self-test", "--layers"], 2),
        (["--engine", "none.engine", "--layers"], 2),
        (["--html", "."], 2),
        (["--html", "nowhere/page.html"], 2),
        (["--junit", "."], 2),
        (["--junit", "nowhere/verify.xml"], 2),
        (["--html", "same", "--junit", "same"], 2),
    ],
)
def test_verify_impossible_requests_exit_codes(
    verify, no_gpu, tmp_path, monkeypatch, arguments, code
):
    monkeypatch.chdir(tmp_path)
    found, out, err = verify(*arguments)
    assert (found, out) == (code, "")
    assert err.splitlines()[0].startswith(("error: ", "skipped: ")) or "error: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GraphError("the graph failed"), 4),
        (RuntimeError("a bug"), 1),
        (SystemExit(0), 4),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 1),
    ],
)
@pytest.mark.parametrize("how", [[], ["--lowest-margins", "20"]])
def test_verify_error_while_comparing_exit_codes(
    verify, photo_folder, monkeypatch, error, code, how
):
    compute = OnnxRuntimeSession._run
    calls = []

    def fail_late(self, images):
        calls.append(len(images))
        if len(calls) > 4:
            raise error
        return compute(self, images)

    monkeypatch.setattr(OnnxRuntimeSession, "_run", fail_late)
    assert verify("--images", photo_folder, *how)[0] == code


def test_verify_of_vanished_images_exits_with_4(verify, photo_folder, tmp_path, monkeypatch):
    from deploykit.proof import images as proof_images

    shutil.copytree(photo_folder, tmp_path / "photos")
    scan = proof_images.scan_images

    def scan_then_remove(*arguments):
        found = scan(*arguments)
        shutil.rmtree(tmp_path / "photos")
        return found

    monkeypatch.setattr(proof_images, "scan_images", scan_then_remove)
    assert verify("--images", tmp_path / "photos")[0] == 4


def test_verify_of_mostly_unreadable_images_exits_with_3(verify, tmp_path):
    path = make_odd_folder(tmp_path / "photos", "unreadable")
    for readable, exit_code in enumerate((3, 0), start=1):
        Image.new("RGB", (20, 20), (200, 30 * readable, 30)).save(path / f"{readable}.png")
        code, out, _ = verify("--images", path)
        assert code == exit_code
        assert f"0 of {readable}, at most" in out
        assert "2 more could not be read" in out
        assert ("2 of 3 photos cannot be read" in out) == bool(code)


@dataclass(frozen=True)
class Reports:
    """What an earlier run has written."""

    page: Path
    xml: Path

    @property
    def options(self):
        return ["--html", self.page, "--junit", self.xml]

    @property
    def left(self):
        return [path for path in (self.page, self.xml) if path.exists()]


@pytest.fixture
def reports(tmp_path):
    made = Reports(tmp_path / "page.html", tmp_path / "verify.xml")
    made.page.write_text(f"<!doctype html>\n{page_mark('verify')}", encoding="utf-8")
    made.xml.write_text(f"<?xml version='1.0'?>\n{JUNIT_MARK}/>", encoding="utf-8")
    return made


def test_verify_failed_removes_earlier_reports(verify, reports, tmp_path):
    assert verify("--images", tmp_path, "--lowest-margins", 0, *reports.options)[0] == 2
    assert reports.left == [reports.page, reports.xml]
    photos = make_odd_folder(tmp_path / "photos", "unreadable")
    assert verify("--images", photos, *reports.options)[0] == 4
    assert reports.left == []


@pytest.mark.parametrize("options", [[], ["--stages"], ["--layers"], ["--lowest-margins", "5"]])
def test_verify_without_image_removes_earlier_reports(verify, reports, tmp_path, options):
    photos = make_odd_folder(tmp_path / "photos", "empty")
    assert verify("--images", photos, *options, *reports.options)[0] == 4
    assert reports.left == []


@pytest.mark.parametrize("name", ["stages", "layers"])
@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("bug"), 1)])
def test_verify_broken_diagnosis_removes_earlier_reports(
    verify, reports, photo_folder, monkeypatch, name, error, code
):
    def walk(*arguments, **options):
        raise error

    monkeypatch.setattr(JOBS[name], walk)
    assert verify("--images", photo_folder, f"--{name}", *reports.options)[0] == code
    assert reports.left == []


def test_verify_of_a_damaged_bundle_removes_earlier_reports(verify, reports, folder):
    (folder / "bundle.json").write_text("{", encoding="utf-8")
    assert verify("--self-test", *reports.options)[0] == 4
    assert reports.left == []


@pytest.mark.parametrize("option", ["--html", "--junit"])
@pytest.mark.parametrize("rest", [["--self-test"], ["--images", "mistyped"], ["--bundle", "none"]])
def test_verify_foreign_file_is_refused(verify, tmp_path, option, rest):
    path = tmp_path / ("thesis.html" if option == "--html" else "pytest.xml")
    foreign = ["<p>my thesis", f"<p>{'long ' * 2000}{page_mark('verify')}", page_mark("bench"), " "]
    for content in foreign:
        path.write_text(content, encoding="utf-8")
        code, out, err = verify(*rest, option, path)
        assert (code, out) == (2, "")
        assert f"{path} would replace a file that this command did not write" in err
        assert path.read_text(encoding="utf-8") == content


def test_verify_foreign_file_keeps_the_other_report(verify, reports):
    before = reports.page.read_text(encoding="utf-8")
    reports.xml.write_text("<testsuites name='pytest tests'/>", encoding="utf-8")
    assert verify("--self-test", *reports.options)[0] == 2
    assert reports.page.read_text(encoding="utf-8") == before


def test_verify_replaces_its_own_reports_and_empty_files(verify, reports):
    for path in (reports.page, reports.xml):
        path.write_bytes(b"")
    for _ in range(2):
        assert verify("--self-test", *reports.options)[0] == 0
        assert page_mark("verify") in reports.page.read_text(encoding="utf-8")
        assert JUNIT_MARK in reports.xml.read_text(encoding="utf-8")
    assert verify("--images", "mistyped", *reports.options)[0] == 4
    assert reports.left == []


def test_verify_follows_a_link_to_its_report(verify, tmp_path):
    target, link = tmp_path / "real.html", tmp_path / "link.html"
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("this system lets nobody make links")
    for _ in range(2):
        assert verify("--self-test", "--html", link)[0] == 0
        assert link.is_symlink()
        assert page_mark("verify") in target.read_text(encoding="utf-8")
    target.write_text("mine", encoding="utf-8")
    assert verify("--self-test", "--html", link)[0] == 2
    assert target.read_text(encoding="utf-8") == "mine"


def test_verify_report_not_written_exits_with_4(verify, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deploykit.system.files.move_into_place", refuse)
    for option, name in (("--html", "page.html"), ("--junit", "verify.xml")):
        code, out, err = verify("--self-test", option, tmp_path / name)
        assert (code, out) == (4, "")
        assert "No space left" in err
