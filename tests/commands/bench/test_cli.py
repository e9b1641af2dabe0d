"""``deploykit bench`` from outside: what it says, what it writes, and what predict takes then."""

import json

import msgspec
import pytest

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import update_manifest
from deploykit.commands.app import run
from deploykit.commands.bench import page as page_of_bench
from deploykit.commands.bench import run as job
from deploykit.errors import InputError
from deploykit.proof import accepted as accepted_choice


@pytest.fixture
def bench(capsys, folder, monkeypatch):
    """Bench that bundle, quickly, on ONNX Runtime's CPU provider alone; as ``verify``."""
    listed = job.list_options

    def on_onnxruntime(bundle, progress):
        able, left_out = listed(bundle, progress)
        return [option for option in able if option.runtime == "onnxruntime-cpu"], left_out

    monkeypatch.setattr(job, "list_options", on_onnxruntime)

    def call(*arguments):
        quick = ("--seconds", "0.1", "--batch-sizes", "4,1")
        code = run(["bench", "--bundle", str(folder), *quick, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def change(folder, **fields):
    """Put other fields into the bundle's manifest."""
    update_manifest(folder, lambda manifest: msgspec.structs.replace(manifest, **fields))


def test_it_recommends_and_says_what_comes_next(bench, folder):
    code, out, err = bench()
    assert code == 0, err
    options = out.split("\n\n")[0].splitlines()
    rows = {line.split(" | ")[0].strip(): line for line in options}
    assert rows["onnxruntime-cpu fp32, plain export"].endswith("proven")
    assert "100.0 % (45 of 45)" in rows["onnxruntime-cpu fp32"]
    assert "recommended  onnxruntime-cpu fp32: " in out
    assert "proof        executed: 0 of " in out
    assert "cannot run   torch fp32, eager, torch fp32, channels-last: " in out
    assert f"next         deploykit bench --bundle {folder} --images " in out


def test_what_is_accepted_is_what_predict_takes_and_says(
    bench, folder, photo_folder, tmp_path, capsys
):
    code, out, _ = bench("--accept")
    assert code == 0
    assert "accepted     deploy/fp32.onnx in fp32 on onnxruntime-cpu: predict takes it" in out
    assert len(open_bundle(folder).manifest.accepted) == 1
    output = tmp_path / "rows.csv"
    arguments = ["predict", str(photo_folder), "--bundle", str(folder), "--output", str(output)]
    assert run(arguments) == 0
    err = capsys.readouterr().err
    assert "taking deploy/fp32.onnx in fp32 on onnxruntime-cpu, accepted from bench on " in err


def test_json_has_every_number_that_the_tables_have(bench):
    code, out, _ = bench("--accept", "--json")
    assert code == 0
    result = json.loads(out)["result"]
    plain, deploy = result["options"]
    assert (plain["name"], deploy["name"]) == (
        "onnxruntime-cpu fp32, plain export",
        "onnxruntime-cpu fp32",
    )
    assert plain["times_plain"] == 1
    assert deploy["standing"] == "proven"
    assert [timing["batch"] for timing in deploy["timings"]] == [1, 4]
    assert deploy["timings"][0]["runs"] >= 1
    assert result["recommended"] == "onnxruntime-cpu fp32"
    assert result["accepted"]["runtime"] == "onnxruntime-cpu"
    assert result["machine"]["versions"]
    assert {each["option"]["runtime"] for each in result["left_out"]} >= {"torch"}


def test_nothing_proven_cannot_be_accepted(bench, folder, tmp_path):
    change(folder, verdicts=())
    page = tmp_path / "bench.html"
    code, out, _ = bench("--accept", "--html", page)
    assert code == 3
    assert "recommended  nothing" in out
    assert "faster       onnxruntime-cpu fp32, " in out
    assert "--runtime onnxruntime-cpu --precision fp32" in out
    assert "ERROR        Nothing can be accepted" in out
    assert f"deploykit bench --bundle {folder} --images " in out
    assert "Nothing can be recommended" in page.read_text(encoding="utf-8")
    assert open_bundle(folder).manifest.accepted == ()
    code, _, _ = bench()
    assert code == 0


def test_what_is_too_little_to_accept_by_is_said_before_anything_is_measured(bench, monkeypatch):
    def never(*arguments):
        raise AssertionError("measured in vain")

    monkeypatch.setattr(job, "bench_bundle", never)
    code, _, err = bench("--accept", "--repeats", "2")
    assert code == 2
    assert "Leave out --repeats, or choose 3 or more" in err


def test_a_damaged_graph_is_told_at_the_end_and_stops_the_choice(bench, folder):
    (folder / "model.onnx").write_bytes(b"damaged")
    code, out, _ = bench()
    assert code == 0
    end = out.split("recommended  onnxruntime-cpu fp32: ")[1]
    assert "DAMAGED      onnxruntime-cpu fp32, plain export: " in end
    code, out, _ = bench("--accept")
    assert code == 4
    assert "ERROR        Nothing is accepted, because not every option could be measured" in out
    assert open_bundle(folder).manifest.accepted == ()


def test_a_choice_that_cannot_be_kept_costs_nothing_that_was_measured(
    bench, folder, tmp_path, monkeypatch
):
    def refuse(*arguments):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(accepted_choice, "update_manifest", refuse)
    page = tmp_path / "bench.html"
    code, out, _ = bench("--accept", "--html", page)
    assert code == 4
    assert "recommended  onnxruntime-cpu fp32" in out
    assert "ERROR        The choice is not kept" in out
    assert "Recommended: onnxruntime-cpu fp32" in page.read_text(encoding="utf-8")
    code, out, _ = bench("--accept", "--json")
    result = json.loads(out)["result"]
    assert (code, result["accepted"]) == (4, None)
    assert "Read-only file system" in result["failures"][0]["message"]


def test_a_page_that_cannot_be_written_costs_nothing_that_was_measured(
    bench, folder, tmp_path, monkeypatch
):
    def refuse(*arguments):
        raise InputError("the disk is full")

    monkeypatch.setattr(page_of_bench, "write_bench_page", refuse)
    code, out, _ = bench("--accept", "--html", tmp_path / "bench.html")
    assert code == 4
    assert "accepted     deploy/fp32.onnx" in out
    assert "ERROR        the disk is full" in out
    assert "written" not in out


def test_what_was_accepted_can_be_forgotten(bench, folder):
    assert bench("--accept")[0] == 0
    code, out, _ = bench("--forget")
    assert code == 0
    assert out.startswith("forgotten    deploy/fp32.onnx in fp32 on onnxruntime-cpu")
    assert open_bundle(folder).manifest.accepted == ()
    code, out, _ = bench("--forget", "--json")
    assert (code, json.loads(out)["result"]) == (0, {"forgotten": None})


def test_the_page_is_written(bench, tmp_path):
    page = tmp_path / "bench.html"
    code, out, _ = bench("--html", page, "--json")
    assert code == 0
    assert json.loads(out)["result"]["outputs"] == [str(page)]
    assert "Recommended: onnxruntime-cpu fp32" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch-sizes", "1,x"), "'1,x' are no batch sizes"),
        (("--batch-sizes", "0"), "Batch sizes must be at least 1; got 0"),
        (("--seconds", "0"), "The rounds cannot take 0 seconds"),
        (("--seconds", "inf"), "The rounds cannot take inf seconds"),
        (("--seconds", "nan"), "The rounds cannot take nan seconds"),
        (("--accept", "--repeats", "1"), "1 round cannot tell a faster option from noise"),
        (("--accept", "--repeats", "2"), "2 rounds cannot tell a faster option from noise"),
        (("--forget", "--accept"), "--forget measures nothing"),
        (("--forget", "--html", "page.html"), "--forget measures nothing"),
        (("--html", "page.txt"), "does not say its format"),
    ],
)
def test_usage_errors(bench, arguments, said):
    code, _, err = bench(*arguments)
    assert code == 2
    assert said in err


def test_without_a_folder_of_photos_it_says_so(bench, folder):
    change(folder, photos=None)
    code, _, err = bench()
    assert code == 2
    assert "Name one: --images DIR" in err
