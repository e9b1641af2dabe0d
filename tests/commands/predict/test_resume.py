"""``predict`` is interrupted, killed, left by its reader or out of room, and no row is lost."""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupted_runs import interrupt_after

from deploykit.commands.app import run
from deploykit.commands.predict import tables
from deploykit.commands.predict.ledger import Ledger
from deploykit.commands.predict.outputs import Outputs, only_writer

OUTPUTS = ("rows.csv", "rows.jsonl")
RUN = Path("rows.csv.run")
PHOTOS = 45
KILLS = int(os.environ.get("DEPLOYKIT_KILLS", "10"))

#: ``predict`` in a process of its own, with time to be killed between two rows.
SLOWLY = """
import sys, time
from deploykit.commands.app import run
from deploykit.commands.predict import plan
from deploykit.commands.predict.ledger import Ledger
from deploykit.commands.predict.outputs import Outputs

show, rows = Outputs.show, Ledger.rows


def show_slowly(self, *row):
    time.sleep(0.01)
    show(self, *row)


def read_slowly(self):
    for row in rows(self):
        time.sleep(0.002)
        yield row


plan._SHARD_FILES = 4
Outputs.show, Ledger.rows = show_slowly, read_slowly
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture
def predict(capsys, monkeypatch, tmp_path, exported_bundle, photo_folder):
    """Run ``predict`` in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*options, source=photo_folder, outputs=OUTPUTS):
        code = run(arguments(exported_bundle, source, *options, outputs=outputs))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def whole(predict):
    """The tables of an uninterrupted run."""
    assert predict()[0] == 0
    written = contents()
    for name in OUTPUTS:
        Path(name).unlink()
    return written


def arguments(bundle, source, *options, outputs=OUTPUTS):
    named = [word for output in outputs for word in ("--output", output)]
    return ["predict", str(source), "--bundle", str(bundle.folder), *named, *map(str, options)]


def contents(outputs=OUTPUTS):
    return {name: Path(name).read_bytes() for name in outputs if Path(name).exists()}


def files():
    """What is there, but for the record of which run wrote the tables."""
    return sorted(entry.name for entry in Path().iterdir() if not entry.match(".*.run"))


def kept():
    """What is in the run's folder."""
    return {path: path.read_bytes() for path in RUN.rglob("*.*")}


def rows_of(path):
    with Path(path).open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def start(bundle, source, *options, outputs=OUTPUTS):
    return subprocess.Popen(
        [
            *(sys.executable, "-c", SLOWLY),
            *arguments(bundle, source, "--resume", *options, outputs=outputs),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for_rows(process, count=0):
    """Wait until a process keeps so many rows, or has ended."""
    while process.poll() is None:
        if Ledger(RUN).count() >= count and RUN.exists():
            return
        time.sleep(0.002)


def kill_at_random_moments(moments, bundle, source, whole):
    """Kill run after run, each of which goes on with what the one before has left."""
    moment = random.Random(0)
    killed = kept = 0
    while killed < moments:
        with start(bundle, source, "--quiet", outputs=[*whole]) as process:
            wait_for_rows(process, moment.choice((0, kept + 1)))
            time.sleep(moment.uniform(0, 0.5))
            process.kill()
            process.wait()
            if process.returncode == 0:  # it was done before
                assert process.stderr.read() == b""
                assert contents(whole) == whole
                for name in whole:
                    Path(name).unlink()
                kept = 0
            else:
                killed += 1
                rows = Ledger(RUN).count()
                # What is kept stays; when all is written, it goes.
                assert rows >= kept or contents(whole) == whole
                kept = rows


def test_resume_after_repeated_kills(predict, exported_bundle, photo_folder):
    pytest.importorskip("pyarrow")
    outputs = (*OUTPUTS, "rows.parquet")
    assert predict(outputs=outputs)[0] == 0
    whole = contents(outputs)
    for name in outputs:
        Path(name).unlink()
    kill_at_random_moments(KILLS, exported_bundle, photo_folder, whole)
    code, _, err = predict("--resume", outputs=outputs)
    assert code == 0, err
    assert contents(outputs) == whole
    assert files() == sorted(outputs)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no way to signal one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)])
def test_resume_after_a_signal(predict, whole, exported_bundle, photo_folder, number):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("this signal is ignored here, as under nohup, and stays so")
    with start(exported_bundle, photo_folder) as process:
        wait_for_rows(process, 3)
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 130
    assert b"rows are kept in rows.csv.run: the same command with --resume goes on" in err
    assert b"Interrupted" in err
    assert b"Traceback" not in err
    assert files() == [RUN.name]
    code, _, err = predict("--resume")
    assert code == 0, err
    assert contents() == whole
    assert files() == sorted(OUTPUTS)


@pytest.mark.parametrize("count", [1, 44])
def test_resume_equals_an_uninterrupted_run(predict, whole, monkeypatch, count):
    interrupt_after(monkeypatch, count)
    assert predict()[0] == 130
    code, out, err = predict("--resume")
    assert code == 0
    assert f"{count} rows are in rows.csv.run: resuming" in err
    assert out.startswith(f"{PHOTOS} rows: {PHOTOS} predicted\n")
    assert f"of {PHOTOS} labelled images" in out
    assert contents() == whole
    assert files() == sorted(OUTPUTS)


def test_resume_predicts_no_file_twice(predict, whole, monkeypatch):
    interrupt_after(monkeypatch, 30)
    predict()
    written = []
    show = Outputs.show
    monkeypatch.setattr(
        Outputs, "show", lambda self, i, row: (written.append(row.path), show(self, i, row))
    )
    assert predict("--resume")[0] == 0
    assert written == [row["path"] for row in rows_of("rows.csv")[30:]]


def test_resume_with_only_a_table_missing(predict, whole, monkeypatch):
    def full(path, rows, head, top_k):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(tables._FORMATS, ".jsonl", full)
        code, _, err = predict()
    assert code == 4
    assert "Writing rows.jsonl failed: No space left on device." in err
    assert f"{PHOTOS} rows are kept in {RUN}" in err
    assert files() == ["rows.csv", RUN.name]
    code, out, _ = predict("--resume")
    assert code == 0
    assert out.startswith(f"{PHOTOS} rows: {PHOTOS} predicted\n")
    assert contents() == whole


def test_resume_without_a_run_starts_afresh(predict, whole):
    code, _, err = predict("--resume")
    assert code == 0
    assert "rows.csv.run has no rows of an earlier run: starting afresh" in err
    assert contents() == whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--top-k", "2"], "--top-k was 3, now 2"),
        (["--precision", "fp32", "--runtime", "onnxruntime-cpu"], None),
        (["--batch-size", "3", "--threads", "1"], None),
    ],
)
def test_resume_refuses_options_that_change_rows(predict, whole, monkeypatch, options, said):
    interrupt_after(monkeypatch, 20)
    predict()
    before = kept()
    code, _, err = predict("--resume", *options)
    if said is None:
        assert code == 0, err
        assert [row["label"] for row in rows_of("rows.csv")] == [
            row["label"] for row in csv.DictReader(whole["rows.csv"].decode().splitlines())
        ]
    else:
        assert code == 2
        assert said in err
        assert kept() == before


def test_resume_refuses_another_model_of_the_same_name(
    predict, monkeypatch, exported_bundle, tmp_path
):
    from deploykit.bundle.manifest import record_file, update_manifest

    interrupt_after(monkeypatch, 5)
    predict()
    folder = tmp_path / "changed" / exported_bundle.folder.name
    shutil.copytree(exported_bundle.folder, folder)
    graph = folder / "deploy" / "fp32.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x1a\x00")  # an empty field: another hash, no more

    def change(manifest):
        manifest.files["deploy/fp32.onnx"] = record_file(graph)
        return manifest

    update_manifest(folder, change)
    code, _, err = predict("--resume", "--bundle", folder, "--runtime", "onnxruntime-cpu")
    assert code == 2
    assert "the SHA-256 of deploy/fp32.onnx was" in err


def test_resume_goes_on_from_the_list_of_its_beginning(
    predict, monkeypatch, photo_folder, tmp_path
):
    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    interrupt_after(monkeypatch, 20)
    predict(source=photos)
    (photos / "blue" / "00.png").unlink()
    (photos / "red" / "03.png").unlink()
    shutil.copy(photos / "red" / "00.png", photos / "blue" / "new.png")
    code, out, err = predict("--resume", source=photos)
    assert code == 0
    assert "2 files changed or vanished since the run began, the first is blue/00.png" in err
    assert out.startswith("45 rows: 44 predicted, 1 failed (1 vanished)")
    rows = rows_of("rows.csv")
    assert (rows[0]["path"], rows[0]["status"]) == ("blue/00.png", "ok")
    assert (rows[33]["path"], rows[33]["status"]) == ("red/03.png", "vanished")


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_resume_keeps_hostile_names(predict, monkeypatch, photo_folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    names = [b"new\nline.png", b"caf\xe9.png", b"=1+1.png", "\u2028鸟.png".encode(), b"back\\.png"]
    for name in names:
        shutil.copy(photo_folder / "red" / "00.png", photos / os.fsdecode(name))
    assert predict(source=photos)[0] == 0
    expected = contents()
    for count in range(1, len(names)):
        interrupt_after(monkeypatch, count)
        assert predict(source=photos)[0] == 130
        assert predict("--resume", source=photos)[0] == 0
        assert contents() == expected
    assert len(rows_of("rows.csv")) == len(names)


def test_predict_skips_its_own_folder(predict, monkeypatch, photo_folder, tmp_path):
    shutil.copytree(photo_folder / "red", "red")
    code, out, _ = predict(source=tmp_path)
    assert code == 0
    assert "without a row" not in out


def test_predict_several_tables_have_equal_rows(predict):
    pq = pytest.importorskip("pyarrow.parquet")
    assert predict(outputs=["a.jsonl", "b.parquet", "c.CSV"])[0] == 0
    lines = [json.loads(line) for line in Path("a.jsonl").read_text("utf-8").splitlines()]
    paths = [line["path"] for line in lines]
    assert len(paths) == PHOTOS
    assert paths == pq.read_table("b.parquet")["path"].to_pylist()
    assert paths == [row["path"] for row in rows_of("c.CSV")]
    assert files() == ["a.jsonl", "b.parquet", "c.CSV"]


@pytest.mark.parametrize("outputs", [["-"], ["-", *OUTPUTS]])
def test_predict_stdout_has_only_rows(predict, whole, outputs):
    code, out, err = predict(outputs=outputs)
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        json.loads(line) for line in whole["rows.jsonl"].splitlines()
    ]
    assert f"{PHOTOS} rows: {PHOTOS} predicted" in err
    assert files() == sorted(name for name in outputs if name != "-")


def test_resume_stdout_has_all_rows(predict, whole, monkeypatch):
    interrupt_after(monkeypatch, 20)
    assert len(predict(outputs=["-", *OUTPUTS])[1].splitlines()) == 20
    _, out, _ = predict("--resume", outputs=["-", *OUTPUTS])
    assert [json.loads(line)["path"] for line in out.splitlines()] == [
        row["path"] for row in rows_of("rows.csv")
    ]
    assert contents() == whole


@pytest.mark.parametrize(
    ("options", "outputs", "said"),
    [
        (["--json"], ["-"], "both want stdout"),
        (["--resume"], ["-"], "--output - is none"),
        ([], ["-", "-"], "are the same file"),
        ([], ["a.csv", "./a.csv"], "are the same file"),
        (["--html", "p.csv"], ["a.csv"], "does not say its format"),
        (["--html", "-"], ["a.csv"], "does not say its format"),
        (["--html", "nowhere/p.html"], ["a.csv"], "does not exist"),
        (["--html", "p.html"], ["-"], "made from a table's rows"),
        ([], ["a.csv", "b.xlsx"], "does not say its format"),
    ],
)
def test_predict_refuses_impossible_outputs(predict, options, outputs, said):
    code, out, err = predict(*options, outputs=outputs)
    assert code == 2
    assert said in (json.loads(out)["error"]["message"] if "--json" in options else err)
    assert files() == []


def test_predict_never_overwrites_its_source(predict, photo_folder):
    photo = next(file for file in photo_folder.rglob("*") if file.is_file())
    for name in ("photo.html", "photo.csv"):
        source = Path(name)
        shutil.copy(photo, source)
        before = source.read_bytes()
        options = ["--html", name] if source.suffix == ".html" else []
        outputs = ["a.csv"] if options else [name]
        code, _, err = predict(*options, source=source, outputs=outputs)
        assert (code, source.read_bytes()) == (2, before)
        assert "are the same file" in err


def test_resume_needs_the_same_order_of_outputs(predict, monkeypatch, whole):
    interrupt_after(monkeypatch, 5)
    assert predict()[0] == 130
    for options in ([], ["--resume"]):
        code, _, err = predict(*options, outputs=OUTPUTS[::-1])
        assert code == 2
        assert f"{RUN} keeps the rows" in err
        assert f"name {OUTPUTS[0]} first" in err
    assert predict("--resume")[0] == 0
    assert contents() == whole


def test_predict_removes_stale_temporary_files(predict, whole):
    left = [".rows.csv.0123abcd", ".rows.jsonl.ffffffff", ".p.html.00000000"]
    others = [".rows.csv.notes", ".rows.csv.0123abc", "rows.csv.0123abcd"]
    for name in [*left, *others]:
        Path(name).touch()
    assert predict("--html", "p.html")[0] == 0
    assert files() == sorted([*OUTPUTS, "p.html", *others])


def test_predict_refuses_an_empty_source(predict):
    code, _, err = predict(source="")
    assert code == 2
    assert "the path is empty" in err


def test_predict_keeps_a_linked_table(predict, whole):
    Path("real").mkdir()
    Path(OUTPUTS[0]).symlink_to(Path("real") / "table.csv")
    assert predict()[0] == 0
    assert Path(OUTPUTS[0]).is_symlink()
    assert (Path("real") / "table.csv").read_bytes() == whole[OUTPUTS[0]]
    assert [entry.name for entry in Path("real").iterdir()] == ["table.csv"]


def test_predict_refuses_a_link_to_other_files(predict):
    Path("model.pth").write_bytes(b"weights")
    Path("page.html").symlink_to("model.pth")
    code, _, err = predict("--html", "page.html")
    assert code == 2
    assert "is a link to" in err
    assert Path("model.pth").read_bytes() == b"weights"


def test_predict_refuses_a_table_with_a_writer(predict, photo_folder):
    with only_writer(Path(OUTPUTS[1])):
        code, _, err = predict()
        assert code == 2
        assert f"Another run is writing {OUTPUTS[1]}" in err
    assert files() == []
    assert predict()[0] == 0


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_predict_with_closed_streams(whole, exported_bundle, photo_folder, closed):
    words = [sys.executable, "-m", "deploykit", *arguments(exported_bundle, photo_folder)]
    assert subprocess.run(f"{shlex.join(words)} {closed}", shell=True, check=False).returncode == 0
    assert contents() == whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("outputs", [["-"], ["a.csv"]])
def test_predict_with_full_stdout(exported_bundle, photo_folder, tmp_path, outputs):
    words = arguments(exported_bundle, photo_folder, outputs=outputs)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deploykit", *words],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 4
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def pipe_to_a_reader_that_leaves(*command):
    """Run a command whose reader takes a line and leaves; gives that, exit code and stderr."""
    with subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        line = process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    return line, process.returncode, err


def test_predict_ends_when_its_reader_leaves(predict, exported_bundle, photo_folder):
    line, code, err = pipe_to_a_reader_that_leaves(
        *arguments(exported_bundle, photo_folder, "--quiet", "--batch-size", "1", outputs=["-"])
    )
    assert json.loads(line)["path"] == "blue/00.png"
    assert (code, err) == (0, b"")


def test_predict_ends_well_whatever_its_reader_saw(exported_bundle, photo_folder, tmp_path):
    """What was read has no prediction, but the run did not come to its end."""
    shutil.copytree(photo_folder, tmp_path / "given")
    for number in range(3):
        (tmp_path / "given" / "blue" / f".{number}").touch()
        (tmp_path / "given" / "blue" / f"-{number}.png").write_bytes(b"")
    line, code, err = pipe_to_a_reader_that_leaves(
        *arguments(
            exported_bundle, tmp_path / "given", "--quiet", "--batch-size", "1", outputs=["-"]
        )
    )
    assert json.loads(line)["status"] != "ok"
    assert (code, err) == (0, b"")


def test_predict_completes_tables_when_its_reader_leaves(
    predict, whole, exported_bundle, photo_folder
):
    _, code, err = pipe_to_a_reader_that_leaves(
        *arguments(exported_bundle, photo_folder, "--quiet", outputs=["-", *OUTPUTS])
    )
    assert (code, err) == (0, b"")
    assert contents() == whole


@pytest.mark.parametrize("as_json", [False, True])
def test_predict_with_unread_summary(predict, whole, exported_bundle, photo_folder, as_json):
    command = arguments(exported_bundle, photo_folder, *(["--json"] if as_json else []))
    with subprocess.Popen(
        [sys.executable, "-m", "deploykit", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0, err
    assert b"rror" not in err
    assert contents() == whole


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit for a file's size")
@pytest.mark.parametrize(
    ("limit", "left"), [(100, []), (4000, []), (8000, []), (12_000, ["rows.csv", RUN.name])]
)
def test_resume_after_a_full_disk(predict, whole, exported_bundle, photo_folder, limit, left):
    limited = (
        "import resource, sys\n"
        "from deploykit.commands.app import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
        "sys.exit(run(sys.argv[2:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(limit), *arguments(exported_bundle, photo_folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "failed: File too large." in done.stderr
    assert "Traceback" not in done.stderr
    assert files() == left
    code, _, err = predict("--resume")
    assert code == 0, err
    assert contents() == whole


@pytest.mark.skipif(os.name == "nt", reason="Windows has no way to signal one process")
@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"], ["--shard", "1/2"]])
def test_predict_beside_another_run_says_so(predict, whole, exported_bundle, photo_folder, options):
    with start(exported_bundle, photo_folder) as process:
        wait_for_rows(process, 4)
        process.send_signal(signal.SIGSTOP)
        code, _, err = predict(*options)
        process.send_signal(signal.SIGCONT)
    assert code == 2
    assert "Another run is writing rows.csv" in err
    assert process.returncode == 0
    assert contents() == whole
    assert files() == sorted(OUTPUTS)


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_predict_replaces_a_run_without_rows(predict, whole, monkeypatch, options):
    """A kill came before the first part, or when the plan was removed."""
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "remove", lambda self: None)
        interrupt_after(patch, 0)
        assert predict()[0] == 130
    assert RUN.is_dir()
    assert predict(*options)[0] == 0
    assert contents() == whole
    assert files() == sorted(OUTPUTS)


def test_resume_quiet(predict, whole, monkeypatch):
    interrupt_after(monkeypatch, 20)
    code, out, err = predict("--quiet")
    assert (code, out) == (130, "")
    kept, ending = err.splitlines()
    assert kept.startswith(f"20 rows are kept in {RUN}")
    assert "--resume" in kept
    assert ending == "error: Interrupted."
    assert predict("--quiet", "--resume") == (0, "", "")
    assert contents() == whole
