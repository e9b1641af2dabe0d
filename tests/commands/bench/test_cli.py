"""``deploykit bench`` from outside: what it says, what it writes, and what predict takes then."""

import json
import os
import signal
import subprocess
import sys
import time

import msgspec
import psutil
import pytest
from bench_runs import ORT

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import update_manifest
from deploykit.commands.app import run
from deploykit.commands.bench import page as page_of_bench
from deploykit.commands.bench.results import PLAIN
from deploykit.errors import InputError
from deploykit.html.document import page_mark
from deploykit.specs.model import Labels


@pytest.fixture
def bench(capsys, folder, only):
    """Bench that bundle, quickly, on ONNX Runtime's CPU provider alone; as ``verify``."""
    only(PLAIN, ORT)

    def call(*arguments):
        quick = ("--seconds", "0.1", "--batch-sizes", "4,1")
        code = run(["bench", "--bundle", str(folder), *quick, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def change(folder, **fields):
    """Put other fields into the bundle's manifest."""
    update_manifest(folder, lambda manifest: msgspec.structs.replace(manifest, **fields))


def test_bench_recommends_and_names_next_step(bench, folder):
    code, out, err = bench()
    assert code == 0, err
    rows = out.split("\n\n")[0].splitlines()
    rows = {line.split(" | ")[0].strip(): line for line in rows}
    assert rows["onnxruntime-cpu fp32, plain export"].endswith("proven")
    assert "100.0 % (45 of 45)" in rows["onnxruntime-cpu fp32"]
    assert "recommended    onnxruntime-cpu fp32: " in out
    assert "proven         executed on CPU, " in out
    assert "skipped        torch fp32: " in out
    assert f"\ndeploykit bench --bundle {folder} --images " in out


def test_bench_refuses_max_images_where_nothing_is_compared(bench):
    code, out, err = bench("--max-images", 5)
    assert (code, out) == (2, "")
    assert "nothing is compared without --verify" in err


def test_bench_accept_decides_what_predict_takes(bench, folder, photo_folder, tmp_path, capsys):
    code, out, _ = bench("--accept")
    assert code == 0
    assert (
        "accepted       deploy/fp32.onnx in fp32 on onnxruntime-cpu, proven: predict takes it"
        in out
    )
    assert len(open_bundle(folder).manifest.accepted) == 1
    output = tmp_path / "rows.csv"
    arguments = ["predict", str(photo_folder), "--bundle", str(folder), "--output", str(output)]
    assert run(arguments) == 0
    err = capsys.readouterr().err
    assert "taking deploy/fp32.onnx in fp32 on onnxruntime-cpu, accepted from bench on " in err


def test_bench_json_has_the_numbers(bench):
    code, out, _ = bench("--accept", "--json")
    assert code == 0
    result = json.loads(out)["result"]
    plain, deploy = sorted(result["measured"], key=lambda each: len(each["name"]), reverse=True)
    assert (plain["name"], deploy["name"]) == (
        "onnxruntime-cpu fp32, plain export",
        "onnxruntime-cpu fp32",
    )
    assert plain["times_plain"] == 1
    assert deploy["status"] == "proven"
    assert deploy["timings"][0]["batch"] == 1
    assert {timing["batch"] for timing in deploy["timings"]} <= {1, 4}
    assert deploy["timings"][0]["runs"] >= 1
    assert result["recommended"] == "onnxruntime-cpu fp32"
    assert result["accepted"]["runtime"] == "onnxruntime-cpu"
    assert result["machine"]["versions"]
    assert {each["candidate"]["runtime"] for each in result["skipped"]} >= {"torch"}


def test_bench_accept_without_any_proof(bench, folder, tmp_path):
    change(folder, verdicts=())
    page = tmp_path / "bench.html"
    code, out, _ = bench("--accept", "--html", page)
    assert code == 3
    assert "recommended    nothing" in out
    assert "faster         onnxruntime-cpu fp32, " in out
    assert "--runtime onnxruntime-cpu --precision fp32" in out
    assert "ERROR          Nothing can be accepted" in out
    assert f"deploykit bench --bundle {folder} --images " in out
    assert "Nothing can be recommended" in page.read_text(encoding="utf-8")
    assert open_bundle(folder).manifest.accepted == ()
    code, _, _ = bench()
    assert code == 0


def test_bench_accept_with_a_damaged_graph(bench, folder):
    (folder / "model.onnx").write_bytes(b"damaged")
    code, out, _ = bench()
    assert code == 4
    end = out.split("recommended    onnxruntime-cpu fp32: ")[1]
    assert "DAMAGED        onnxruntime-cpu fp32, plain export: " in end
    assert "next " not in end
    code, out, _ = bench("--accept")
    assert code == 4
    assert (
        "ERROR          Nothing is accepted, because not every candidate could be measured" in out
    )
    assert open_bundle(folder).manifest.accepted == ()


def test_bench_of_a_manifest_that_contradicts_its_graphs(bench, folder):
    names = open_bundle(folder).manifest.labels.names[::-1]
    change(folder, labels=Labels(names=names, source="forged"))
    code, _, err = bench()
    assert code == 4
    assert "model.onnx was exported with deploykit.labels" in err


def test_bench_accept_not_kept_loses_no_measurement(bench, folder, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("deploykit.bundle.manifest.write_manifest", refuse)
    page = tmp_path / "bench.html"
    code, out, _ = bench("--accept", "--html", page)
    assert code == 4
    assert "recommended    onnxruntime-cpu fp32" in out
    assert "cannot be changed: Read-only file system" in out
    assert "Recommended: onnxruntime-cpu fp32" in page.read_text(encoding="utf-8")
    code, out, _ = bench("--accept", "--json")
    result = json.loads(out)["result"]
    assert (code, result["accepted"]) == (4, None)
    assert "Read-only file system" in result["failures"][0]["message"]


def test_bench_html_failing_loses_no_measurement(bench, folder, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise InputError("the disk is full")

    monkeypatch.setattr(page_of_bench, "write_bench_page", refuse)
    code, out, _ = bench("--accept", "--html", tmp_path / "bench.html")
    assert code == 4
    assert "accepted       deploy/fp32.onnx" in out
    assert "ERROR          the disk is full" in out
    assert "written" not in out


def test_bench_forget_removes_the_accepted(bench, folder):
    assert bench("--accept")[0] == 0
    code, out, _ = bench("--forget")
    assert code == 0
    assert out.startswith("forgotten      deploy/fp32.onnx in fp32 on onnxruntime-cpu")
    assert open_bundle(folder).manifest.accepted == ()
    code, out, _ = bench("--forget", "--json")
    assert (code, json.loads(out)["result"]) == (0, {"forgotten": None})


def test_bench_html_is_written(bench, tmp_path):
    page = tmp_path / "bench.html"
    code, out, _ = bench("--html", page, "--json")
    assert code == 0
    assert json.loads(out)["result"]["outputs"] == [str(page)]
    assert "Recommended: onnxruntime-cpu fp32" in page.read_text(encoding="utf-8")
    # That of an earlier run never stays beside one that fails.
    assert bench("--html", page, "--images", tmp_path / "mistyped")[0] in (2, 4)
    assert not page.exists()


@pytest.mark.parametrize("rest", [["--verify"], ["--images", "mistyped"]])
def test_bench_foreign_page_is_refused(bench, tmp_path, rest):
    page = tmp_path / "thesis.html"
    for content in ("<p>my thesis", page_mark("verify")):
        page.write_text(content, encoding="utf-8")
        code, out, err = bench("--html", page, *rest)
        assert (code, out) == (2, "")
        assert f"{page} would replace a file that this command did not write" in err
        assert page.read_text(encoding="utf-8") == content


@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C cannot be sent to one console there")
def test_bench_ctrl_c_ends_its_processes(folder):
    """A terminal sends it to all of them; the first is still importing."""
    bench = subprocess.Popen(
        [sys.executable, "-m", "deploykit", "bench", "--bundle", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    measuring = []
    while not measuring:
        assert bench.poll() is None, bench.stderr.read()
        children = psutil.Process(bench.pid).children()
        measuring = [each for each in children if "--multiprocessing-fork" in each.cmdline()]
        time.sleep(0.02)
    os.killpg(bench.pid, signal.SIGINT)
    out, err = bench.communicate(timeout=60)
    assert (bench.returncode, out) == (130, "")
    assert err.endswith("error: Interrupted.\n")
    assert "Traceback" not in err
    assert psutil.wait_procs(measuring, timeout=10)[1] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch-sizes", "1,x"), "'1,x' is no list of batch sizes"),
        (("--batch-sizes", "0"), "Batch sizes must be at least 1; got 0"),
        (("--seconds", "0"), "The rounds cannot take 0 seconds"),
        (("--seconds", "inf"), "The rounds cannot take inf seconds"),
        (("--seconds", "nan"), "The rounds cannot take nan seconds"),
        (("--repeats", "2"), "greater than or equal to 3"),
        (("--forget", "--accept"), "--forget measures nothing"),
        (("--forget", "--html", "page.html"), "--forget measures nothing"),
        (("--html", "page.txt"), "does not say its format"),
    ],
)
def test_bench_refuses_wrong_usage(bench, arguments, said):
    code, _, err = bench(*arguments)
    assert code == 2
    assert said in err


def test_bench_without_images_folder(bench, folder):
    change(folder, images=None)
    code, _, err = bench()
    assert code == 2
    assert "Name one: --images DIR" in err
