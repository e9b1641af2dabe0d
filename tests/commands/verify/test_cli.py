"""``deploykit verify`` from outside: what it says and what it writes."""

import json
import shlex
import shutil

import msgspec
import numpy as np
import pytest
import torch
from made_reports import BAD_LAYERS, BAD_STAGES, GOOD_LAYERS, GOOD_STAGES, JOBS

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import update_manifest
from deploykit.commands.app import run
from deploykit.commands.verify.conclusion import RECORDED_PREPROCESSING_ONLY
from deploykit.errors import DependencyError
from deploykit.parity.diagnosis import Finding, StageReport


def test_verify_labelled_images_has_accuracy(verify, photo_folder):
    code, out, _ = verify("--images", photo_folder)
    assert code == 0
    assert "accuracy   100.0 % (45 of 45), of such images at least 93.6 %: the reference" in out
    assert "the same in each class: " in out
    assert not any(line.startswith("green ") for line in out.splitlines())


def test_verify_json_has_accuracy(verify, photo_folder, no_openvino):
    _, out, _ = verify("--images", photo_folder, "--json")
    result = json.loads(out)["result"]
    accuracy = result["accuracy"]
    assert (accuracy["reference"]["images"], accuracy["reference"]["correct"]) == (45, 45)
    assert accuracy["reference"]["error_rate_bound"] == pytest.approx(1 - 0.05 ** (1 / 45))
    assert accuracy["candidates"] == [accuracy["reference"]]
    assert [each["label"] for each in accuracy["reference"]["classes"]] == ["blue", "green", "red"]
    assert result["versions"]["onnxruntime-gpu" if "onnxruntime-gpu" in out else "onnxruntime"]
    assert result["created"].endswith("+00:00")
    assert result["mining"] is result["stages"] is result["layers"] is None


def test_verify_unlabelled_images_has_no_accuracy(verify, photo_folder, tmp_path):
    shutil.copytree(photo_folder / "red", tmp_path / "unsorted")
    code, out, _ = verify("--images", tmp_path / "unsorted", "--json")
    assert code == 0
    assert json.loads(out)["result"]["accuracy"] is None
    _, out, _ = verify("--images", tmp_path / "unsorted")
    assert "accuracy" not in out


def test_verify_lowest_margins_states_its_limits(verify, photo_folder, no_openvino):
    code, out, err = verify("--images", photo_folder, "--lowest-margins", 5)
    assert code == 0
    assert "ranking 45 photos by the margins of deploy/fp32.onnx on onnxruntime-cpu" in err
    assert "the 5 with the lowest were compared" in out
    assert "there is no bound" in out
    assert "of the 40 other photos is" in out
    (row,) = (line for line in out.splitlines() if line.startswith("deploy/fp32.onnx "))
    assert row.split("|")[3].strip() == "0 of 5"
    assert "accuracy" not in out
    _, out, _ = verify("--images", photo_folder, "--lowest-margins", 5, "--json")
    mining = json.loads(out)["result"]["mining"]
    assert (mining["compared"], mining["ranked"]) == (5, 45)
    assert mining["lost"].keys() == {"deploy/fp32.onnx on onnxruntime-cpu"}
    assert len(mining["sentences"]) == 4


def test_verify_writes_certificate_and_junit(verify, photo_folder, tmp_path):
    page, xml = tmp_path / "certificate.html", tmp_path / "verify.xml"
    code, out, err = verify("--images", photo_folder, "--html", page, "--junit", xml)
    assert code == 0, err
    assert f"written    {page}" in out
    assert f"written    {xml}" in out
    assert "PASSED" in page.read_text(encoding="utf-8").upper()
    assert xml.read_text(encoding="utf-8").startswith("<?xml")


def test_verify_failed_writes_reports_too(verify, photo_folder, tmp_path, answers):
    answers("deploy/fp32.onnx", np.negative)
    page, xml = tmp_path / "certificate.html", tmp_path / "verify.xml"
    arguments = ("--images", photo_folder, "--html", page, "--junit", xml, "--json")
    code, out, _ = verify(*arguments)
    assert code == 3
    assert json.loads(out)["result"]["outputs"] == [str(page), str(xml)]
    assert "<failure" in xml.read_text(encoding="utf-8")


@pytest.fixture
def walks(monkeypatch):
    """Put what the walks find, and keep what they were asked."""
    found = {"stages": GOOD_STAGES, "layers": (GOOD_LAYERS,), "asked": []}

    def put(name):
        def walk(bundle, request, progress, plan=None, *, reference=None):
            found["asked"].append(request)
            return found[name]

        monkeypatch.setattr(JOBS[name], walk)

    put("stages")
    put("layers")
    return found


@pytest.fixture
def transform(tmp_path):
    """A file with a training transform."""
    path = tmp_path / "train.py"
    lines = (
        "import numpy as np",
        "def transform(photo):",
        "    small = np.asarray(photo.resize((16, 16)), np.float32)",
        "    return small.transpose(2, 0, 1) / 255",
    )
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_diagnosis_gets_the_named_options(verify, walks, photo_folder, transform):
    code, out, _ = verify(
        *("--images", photo_folder, "--max-images", 9, "--runtime", "onnxruntime-cpu"),
        *("--stages", "--transform", f"{transform}:transform", "--trained-accuracy", "0.9"),
        *("--layers", "--precision", "fp32"),
    )
    assert code == 0
    stages, layers = walks["asked"]
    assert (stages.images, stages.max_images) == (photo_folder, 9)
    assert (stages.transform, stages.trained_accuracy) == (f"{transform}:transform", 0.9)
    assert (layers.images, layers.max_images) == (photo_folder, 9)
    for walk in (stages, layers):
        assert (walk.runtime, walk.precision) == ("onnxruntime-cpu", "fp32")
        assert len(walk.first) == 9
        assert all((photo_folder / name).is_file() for name in walk.first)
    assert "PASSED  stages: every step is within its tolerance" in out
    assert "PASSED  layers of deploy/fp16.onnx: no node adds more than it may" in out


@pytest.mark.parametrize(
    ("option", "report"),
    [
        ("stages", BAD_STAGES),
        ("stages", StageReport(beginning="nothing", steps=())),
        ("layers", (GOOD_LAYERS, BAD_LAYERS)),
        ("layers", ()),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_diagnosis_failed_exits_with_3(
    verify, walks, photo_folder, tmp_path, option, report, as_json
):
    walks[option] = report
    page, xml = tmp_path / "page.html", tmp_path / "verify.xml"
    code, out, _ = verify(
        *("--images", photo_folder, f"--{option}", "--html", page, "--junit", xml),
        *(["--json"] if as_json else []),
    )
    assert code == 3
    assert page.exists()
    assert xml.exists()
    if as_json:
        result = json.loads(out)["result"]
        assert result["passed"] is False
        assert all(verdict["passed"] for verdict in result["verdicts"])
        assert result[option] is not None
    else:
        assert "FAILED" in out


def test_diagnosis_begins_with_flipped_images(verify, walks, photo_folder, answers):
    """Only those with the lowest margins are compared; they are what the walks look at first."""
    answers("deploy/fp32.onnx", np.negative)
    arguments = ("--images", photo_folder, "--lowest-margins", 5, "--stages", "--layers", "--json")
    code, out, _ = verify(*arguments)
    assert code == 3
    flipped = json.loads(out)["result"]["verdicts"][0]["measurement"]["flipped"]
    for request in walks["asked"]:
        assert set(request.first) == {flip["path"] for flip in flipped}
        assert len(request.first) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "--engine", "a.engine"], "they take no --self-test, --engine"),
        (["--layers", "--engine", "a.engine"], "they take no --self-test, --engine"),
        (["--stages", "--tf32", "--runtime", "onnxruntime-cuda"], "diagnose graphs in plain FP32"),
        (["--layers", "--self-test"], "they take no --self-test"),
        (["--layers", "--runtime", "tensorrt"], "hands out no tensor"),
        (["--transform", "train.py:transform"], "for the diagnosis by stage"),
    ],
)
def test_diagnosis_options_that_contradict(verify, options, message):
    code, _, err = verify(*options)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    "options", [["--transform", "no_such_file.py:transform"], ["--images", "no such folder"]]
)
def test_diagnosis_inputs_are_checked_before_comparison(verify, photo_folder, monkeypatch, options):
    def compare(*arguments, **options):
        raise AssertionError("compared")

    monkeypatch.setattr("deploykit.commands.verify.run.answer_images", compare)
    code, _, err = verify("--images", photo_folder, "--stages", *options)
    assert code in (2, 4)
    assert "no_such_file.py" in err or "no such folder" in err


def test_layers_of_bf16_are_refused_before_comparison(verify, photo_folder, monkeypatch):
    def compare(*arguments, **options):
        raise AssertionError("compared")

    monkeypatch.setattr("deploykit.commands.verify.run.answer_images", compare)
    code, _, err = verify("--images", photo_folder, "--layers", "--precision", "bf16")
    assert code == 2
    assert "openvino fuses nodes" in err
    assert "--runtime onnxruntime-cpu, without --precision" in err


@pytest.mark.parametrize("name", ["stages", "layers"])
@pytest.mark.parametrize("as_json", [False, True])
def test_diagnosis_that_breaks_keeps_the_comparison(
    verify, photo_folder, tmp_path, monkeypatch, name, as_json
):
    def walk(*arguments, **options):
        raise DependencyError("There is no torch.", hint="Install it.")

    monkeypatch.setattr(JOBS[name], walk)
    page, xml = tmp_path / "page.html", tmp_path / "verify.xml"
    code, out, _ = verify(
        *("--images", photo_folder, f"--{name}", "--html", page, "--junit", xml),
        *(["--json"] if as_json else []),
    )
    assert code == DependencyError.exit_code
    assert "There is no torch." in page.read_text(encoding="utf-8")
    assert "There is no torch." in xml.read_text(encoding="utf-8")
    if as_json:
        result = json.loads(out)["result"]
        assert result["passed"] is False
        assert result["verdicts"][0]["passed"] is True
        (walk,) = result["broken_off"]
        assert (walk["name"], walk["message"]) == (name, "There is no torch.")
    else:
        assert f"FAILED  {name}: the diagnosis ended with an error: There is no torch." in out
        assert "Install it." in out


def test_stages_failed_limits_the_proof(verify, walks, photo_folder):
    arguments = ("--images", photo_folder, "--stages")
    assert RECORDED_PREPROCESSING_ONLY not in verify(*arguments)[1]
    walks["stages"] = BAD_STAGES
    assert RECORDED_PREPROCESSING_ONLY in verify(*arguments)[1]


def test_diagnosis_passed_excuses_no_verdict(verify, walks, photo_folder, answers):
    answers("deploy/fp32.onnx", np.negative)
    assert verify("--images", photo_folder, "--stages", "--layers")[0] == 3


def test_diagnosis_of_a_sound_bundle_passes(verify, network_file, photo_folder):
    code, out, err = verify(
        *("--images", photo_folder, "--max-images", 12, "--arch", f"{network_file}:Net"),
        *("--stages", "--layers", "--json"),
    )
    assert code == 0, out + err
    result = json.loads(out)["result"]
    assert (result["passed"], result["stages"]["passed"]) == (True, True)
    graphs = [report["candidate"]["graph"] for report in result["layers"]]
    assert graphs == ["deploy/fp32.onnx"]
    assert all(report["passed"] for report in result["layers"])


def test_verify_notes_are_not_repeated_by_diagnosis(verify, folder, photo_folder):
    update_manifest(folder, lambda it: msgspec.structs.replace(it, images=str(photo_folder)))
    code, _, err = verify("--stages", "--layers", "--max-images", 6)
    assert code == 0
    assert err.count("using the photos given at export") == 1


def test_trained_accuracy_refuses_nan(verify, photo_folder):
    options = ("--images", photo_folder, "--stages", "--trained-accuracy", "nan")
    code, _, err = verify(*options)
    assert code == 2
    assert "An accuracy is a number between 0 and 1, not nan." in err


def test_verify_counts_duplicates_and_skips_them(verify, photo_folder, tmp_path):
    folder = tmp_path / "photos" / "red"
    folder.mkdir(parents=True)
    for i in range(20):
        shutil.copy(photo_folder / "red" / "00.png", folder / f"{i:02}.png")
    shutil.copy(photo_folder / "red" / "01.png", folder / "other.png")
    code, out, _ = verify("--images", folder)
    assert code == 0
    assert f"2 photos of {folder} (19 duplicates skipped)" in out
    (row,) = (line for line in out.splitlines() if line.startswith("deploy/fp32.onnx | onnx"))
    assert row.split("|")[3].strip() == f"0 of 2, at most {100 * (1 - 0.05**0.5):.1f} %"
    result = json.loads(verify("--images", folder, "--json")[1])["result"]
    assert (result["images"]["count"], result["images"]["duplicates"]) == (2, 19)


@pytest.mark.parametrize("as_json", [False, True])
def test_verify_with_damaged_golden_file_exits_with_4(verify, folder, photo_folder, as_json):
    with (folder / "golden.npz").open("ab") as file:
        file.write(b"x")
    code, out, err = verify("--images", photo_folder, *(["--json"] if as_json else []))
    assert code == 4
    assert "golden.npz is not the file that was exported" in (out if as_json else err)


def test_reports_say_why_the_module_is_not_reference(verify, photo_folder, tmp_path):
    """The architecture is the user's own code, which runs only when it is named."""
    page, xml = tmp_path / "page.html", tmp_path / "verify.xml"
    code, out, _ = verify("--images", photo_folder, "--html", page, "--junit", xml, "--json")
    assert code == 0
    why = "which runs only when --arch names it"
    result = json.loads(out)["result"]
    assert why in result["reference"]["module_reason"]
    for report in (page, xml):
        assert why in report.read_text(encoding="utf-8")


def test_verify_begins_with_what_stands_in(verify, folder, photo_folder, network_file, capsys):
    """And the command that it shows compares with the checkpoint, on the same bundle and photos."""
    code, out, _ = verify("--images", photo_folder)
    first, command, blank, *_ = out.splitlines()
    assert first == (
        "Compared with model.onnx, not with the checkpoint: the manifest names code of its own, "
        f"{network_file}:Net, which runs only when --arch names it."
    )
    words = shlex.split(command)
    assert words[:4] == ["deploykit", "verify", "--bundle", str(folder)]
    assert words[4:6] == ["--arch", f"{network_file}:Net"]
    assert words[6] == "--ckpt"
    assert words[8:] == ["--images", str(photo_folder)]
    assert (code, blank) == (0, "")
    assert run(words[1:]) == 0
    out = capsys.readouterr().out
    assert "decides as the trained model does" in out
    assert "not with the checkpoint" not in out


def test_verify_without_checkpoint_names_no_file(verify, folder, photo_folder):
    path = folder / "bundle.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["checkpoint"]["path"] = str(folder / "gone.pth")
    path.write_text(json.dumps(manifest), encoding="utf-8")
    _, out, _ = verify("--images", photo_folder)
    assert " --ckpt FILE --images " in out.splitlines()[1]


@pytest.mark.parametrize("option", ["--images", "--ckpt", "--html", "--junit", "--transform"])
def test_verify_refuses_empty_paths(verify, photo_folder, monkeypatch, tmp_path, option):
    monkeypatch.chdir(photo_folder)
    code, out, err = verify(option, "", *(["--stages"] if option == "--transform" else []))
    assert (code, out) == (2, "")
    assert "the path is empty" in err or "names a file, but not the transform" in err


@pytest.mark.parametrize("stages", [GOOD_STAGES, BAD_STAGES])
def test_verify_ends_with_the_outcome(verify, walks, photo_folder, tmp_path, stages):
    walks["stages"] = stages
    code, out, _ = verify("--images", photo_folder, "--stages", "--html", tmp_path / "page.html")
    lines = out.splitlines()
    assert lines[-1] == ("FAILED" if code else "PASSED")
    assert (code, lines.count("PASSED"), lines.count("FAILED")) in [(0, 1, 0), (3, 0, 1)]


def test_export_command_combines_findings(
    verify, walks, folder, photo_folder, tmp_path, posix_shell
):
    def finding(*options):
        return Finding(stage="normalise", message="wrong", hint="See there.", options=options)

    walks["stages"] = msgspec.structs.replace(
        BAD_STAGES,
        findings=(
            finding(("--mean", "0.5,0.5,0.5")),
            finding(("--std", "0.2,0.2,0.2"), ("--resize", "20x20")),
            finding(),
        ),
    )
    page = tmp_path / "page.html"
    code, out, _ = verify("--images", photo_folder, "--stages", "--html", page, "--json")
    assert code == 3
    command = json.loads(out)["result"]["export_command"]
    words = shlex.split(command)
    assert words[:2] == ["deploykit", "export"]
    manifest = open_bundle(folder).manifest
    for option, value in {
        "--arch": manifest.architecture.name,
        "--ckpt": manifest.checkpoint.path,
        "--mean": "0.5,0.5,0.5",
        "--std": "0.2,0.2,0.2",
        "--resize": "20x20",
        "--interpolation": "bilinear",
    }.items():
        assert words[words.index(option) + 1] == value
        assert words.count(option) == 1
    assert "--overwrite" in words
    assert "To mend all that export can" in page.read_text(encoding="utf-8")
    assert command in verify("--images", photo_folder, "--stages")[1].splitlines()


def test_export_command_not_for_another_checkpoint(
    verify, walks, photo_folder, network_file, checkpoint, tmp_path
):
    fault = Finding(stage="normalise", message="wrong", hint="", options=(("--mean", "0.5"),))
    walks["stages"] = msgspec.structs.replace(BAD_STAGES, findings=(fault,))
    weights = torch.load(checkpoint, weights_only=True)
    weights["head.bias"] += 0.5
    torch.save(weights, tmp_path / "other.pth")
    arguments = ("--images", photo_folder, "--stages", "--arch", f"{network_file}:Net", "--json")
    mend = json.loads(verify(*arguments)[1])["result"]["export_command"]
    assert "--mean 0.5" in mend
    _, out, _ = verify(*arguments, "--ckpt", tmp_path / "other.pth")
    assert json.loads(out)["result"]["export_command"] is None


def test_reference_is_opened_once(verify, photo_folder, network_file, monkeypatch):
    from deploykit.proof import reference

    opened = []
    open_module = reference.open_module

    def counted(*arguments, **options):
        opened.append(open_module(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(reference, "open_module", counted)
    code, out, err = verify(
        *("--images", photo_folder, "--max-images", 12, "--arch", f"{network_file}:Net"),
        *("--stages", "--layers"),
    )
    assert code == 0, out + err
    assert len(opened) == 1


def test_self_test_refuses_max_images(verify):
    code, _, err = verify("--self-test", "--max-images", 3)
    assert code == 2
    assert "--max-images" in err
