"""``predict --shard`` in several processes, and ``collect``: the tables of one process."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from interrupted_runs import interrupt_after

import deploykit
from deploykit.bundle.manifest import sha256_of
from deploykit.commands.app import run
from deploykit.commands.predict import plan
from deploykit.commands.predict.ledger import Ledger
from deploykit.errors import InputError, UsageError

RUN = Path("rows.csv.run")
OUTPUTS = ("rows.csv", "rows.jsonl")


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_SHARD_FILES", 4)

    def call(*words):
        code = run([*map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def predict(call, exported_bundle, photo_folder):
    def predict(*options, source=photo_folder, bundle=exported_bundle.folder, outputs=OUTPUTS):
        named = [word for output in outputs for word in ("--output", output)]
        return call("predict", source, "--bundle", bundle, *named, *options)

    return predict


@pytest.fixture
def whole(predict):
    """The tables of one process."""
    assert predict()[0] == 0
    written = contents()
    for name in (*OUTPUTS, ".rows.csv.run"):
        Path(name).unlink()
    return written


def contents():
    return {name: Path(name).read_bytes() for name in OUTPUTS if Path(name).exists()}


def test_shards_collected_are_the_tables_of_one_process(predict, call, whole):
    order = [*range(1, 8)]
    random.Random(0).shuffle(order)
    for done, number in enumerate(order, start=1):
        code, out, _ = predict("--shard", f"{number}/7")
        assert code == 0
        assert ("are missing" in out) == (done < 7)
        assert contents() == {}
        if done == 6:
            code, _, err = call("collect", RUN)
            assert code == 4
            assert f"no row of file {4 * (order[6] - 1)} of 45" in err
            assert "Run the shards again" in err
    code, out, _ = call("collect", RUN)
    assert code == 0
    assert out.startswith("45 rows: 45 predicted\n")
    assert contents() == whole
    success = json.loads((RUN / "_SUCCESS.json").read_bytes())
    assert success["rows"] == 45
    assert success["outputs"] == {name: sha256_of(Path(name)) for name in OUTPUTS}
    assert success["plan"] == Ledger(RUN).made.digest
    assert call("collect", RUN)[0] == 0  # once more does no harm
    assert contents() == whole


def test_shard_summary_as_json(predict):
    code, out, _ = predict("--shard", "2/3", "--json")
    assert code == 0
    assert json.loads(out)["result"] == {
        "shard": "2/3", "predicted": 16, "rows": 16, "files": 45, "folder": str(RUN),
    }  # fmt: skip
    assert json.loads(predict("--shard", "2/3", "--json")[1])["result"]["predicted"] == 0


def test_shards_at_once_have_one_plan(predict, call, whole, exported_bundle, photo_folder):
    words = [sys.executable, "-m", "deploykit", "predict", str(photo_folder)]
    words += ["--bundle", str(exported_bundle.folder), "--output", "rows.csv"]
    words += ["--output", "rows.jsonl", "--quiet", "--shard"]
    started = [subprocess.Popen([*words, f"{number}/3"]) for number in (1, 2, 3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert len([*RUN.glob("list-*")]) == 1
    assert call("collect", RUN)[0] == 0
    assert contents() == whole


def test_shard_interrupted_goes_on(predict, call, whole, monkeypatch):
    interrupt_after(monkeypatch, 10)
    code, _, err = predict("--shard", "1/2")
    assert code == 130
    assert "6 rows are kept in rows.csv.run: the same command goes on" in err
    assert predict("--shard", "2/2")[0] == 0
    _, out, _ = predict("--shard", "1/2", "--json")
    assert json.loads(out)["result"]["predicted"] == 24 - 6
    assert call("collect", RUN)[0] == 0
    assert contents() == whole


def test_collect_finds_what_is_damaged(predict, call, whole):
    for number in (1, 2):
        assert predict("--shard", f"{number}/2")[0] == 0
    parts = sorted((RUN / "parts").iterdir())
    data = parts[3].read_bytes()
    parts[3].write_bytes(data.replace(b'"label":"', b'"label":"x', 1))
    code, _, err = call("collect", RUN)
    assert code == 4
    assert "no row of file 12 of 45" in err
    assert contents() == {}
    assert predict("--shard", "2/2")[0] == 0
    assert call("collect", RUN)[0] == 0
    assert contents() == whole


def test_collect_where_the_run_was_moved(predict, call, whole, tmp_path, monkeypatch):
    assert predict("--shard", "1/1")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    RUN.rename(tmp_path / "elsewhere" / RUN.name)
    monkeypatch.chdir(tmp_path / "elsewhere" / RUN.name)
    assert call("collect", ".")[0] == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert contents() == whole


def test_shard_of_another_command_is_refused(predict, call, exported_bundle, photo_folder):
    assert predict("--shard", "1/2")[0] == 0
    code, _, err = predict("--shard", "2/2", "--top-k", "2")
    assert code == 2
    assert "rows.csv.run belongs to another run: --top-k was 3, now 2" in err
    code, _, err = predict("--shard", "2/2", source=photo_folder / "red")
    assert code == 2
    assert "what is predicted was" in err
    for options in ([], ["--resume"], ["--overwrite"]):
        code, _, err = predict(*options)
        assert code == 2
        assert "is a run in shards" in err
        assert "deploykit collect rows.csv.run" in err


def test_shard_with_other_outputs_is_refused(predict):
    assert predict("--shard", "1/2")[0] == 0
    for options, outputs in (([], OUTPUTS[:1]), (["--html", "p.html"], OUTPUTS)):
        code, _, err = predict("--shard", "2/2", *options, outputs=outputs)
        assert code == 2
        assert "rows.csv.run is to become rows.csv, rows.jsonl, and this command names" in err


def test_shard_of_a_run_of_one_process_is_refused(predict, monkeypatch):
    interrupt_after(monkeypatch, 10)
    assert predict()[0] == 130
    code, _, err = predict("--shard", "1/2")
    assert code == 2
    assert "is a run of one process" in err


@pytest.mark.parametrize("shard", ["", "3", "0/2", "3/2", "-1/2", "1/0", "a/b", "1/2/3", "1.0/2"])
def test_shard_that_is_none_is_refused(predict, shard):
    code, _, err = predict("--shard", shard)
    assert code == 2
    assert "--shard 3/40" in err
    assert [*Path().iterdir()] == []


@pytest.mark.parametrize(
    ("options", "outputs", "said"),
    [
        (["--strict"], OUTPUTS, "Say it to deploykit collect"),
        ([], ["-"], "--output - is none"),
        ([], ["-", "rows.csv"], "--output - is all of them"),
    ],
)
def test_shard_with_other_options_is_refused(predict, options, outputs, said):
    code, _, err = predict("--shard", "1/2", *options, outputs=outputs)
    assert code == 2
    assert said in err


def test_more_shards_than_files(predict, call, photo_folder):
    photo = photo_folder / "red" / "00.png"
    for number in (1, 2, 3):
        assert predict("--shard", f"{number}/3", source=photo)[0] == 0
    assert call("collect", RUN)[0] == 0
    assert len(Path("rows.csv").read_text().splitlines()) == 2


def test_collect_of_what_is_no_run(call, tmp_path):
    code, _, err = call("collect", "nowhere.run")
    assert code == 4
    assert "nowhere.run holds no run" in err


def test_collect_with_another_bundle(predict, call, exported_bundle, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(exported_bundle.folder, moved)
    assert predict("--shard", "1/1", bundle=moved)[0] == 0
    shutil.rmtree(moved)
    assert call("collect", RUN)[0] == 4
    shutil.copytree(exported_bundle.folder, tmp_path / "there")
    assert call("collect", RUN, "--bundle", "there")[0] == 0


def test_collect_keeps_what_another_run_wrote(predict, call):
    assert predict("--shard", "1/1")[0] == 0
    Path("rows.jsonl").write_text("notes")
    code, _, err = call("collect", RUN)
    assert code == 2
    assert "rows.jsonl is not from this command" in err or "does not tell which run" in err
    assert Path("rows.jsonl").read_text() == "notes"
    assert call("collect", RUN, "--overwrite")[0] == 0


def test_collect_strict_counts_unreadable_images(predict, call, tmp_path, photo_folder):
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    (photos / "red" / "00.png").write_bytes(b"")
    assert predict("--shard", "1/1", source=photos)[0] == 0
    assert call("collect", RUN, "--strict")[0] == 6
    value = json.loads(call("collect", RUN, "--json")[1])["result"]
    assert (value["rows"], value["ok"], value["failures"]) == (45, 44, {"truncated": 1})


def test_rows_of_another_file_are_no_rows(predict, call):
    """A checksum does not tell who made a part."""
    assert predict("--shard", "1/1")[0] == 0
    ledger = Ledger(RUN)
    part = ledger.parts()[0]
    rows, work = ledger.read(part)
    made = [msgspec.structs.replace(row.row, path=f"red/{row.ordinal:02}.png") for row in rows]
    ledger.write(part.start, [(row, None) for row in made], work)
    code, _, err = call("collect", RUN)
    assert code == 4
    assert "has a row of red/00.png" in err
    assert "blue/00.png is listed" in err


def test_python_predicts_into_tables(whole, exported_bundle, photo_folder, tmp_path, monkeypatch):
    options = {"bundle": exported_bundle, "output": [*OUTPUTS]}
    interrupt_after(monkeypatch, 20)
    with pytest.raises(KeyboardInterrupt):
        deploykit.predict(photo_folder, **options)
    with pytest.raises(UsageError, match="holds the 20 rows") as caught:
        deploykit.predict(photo_folder, **options)
    assert "add resume=True" in caught.value.hint
    summary = deploykit.predict(photo_folder, resume=True, **options)
    assert summary.tally.rows == 45
    assert repr(summary).startswith("45 rows: 45 predicted\n")
    assert contents() == whole
    summary = deploykit.predict(photo_folder, bundle=exported_bundle, output=Path("rows.csv"))
    assert summary.outputs == [Path("rows.csv")]
    assert len([*deploykit.predict(photo_folder, bundle=exported_bundle)]) == 45


def test_python_predicts_shards(whole, exported_bundle, photo_folder):
    options = {"bundle": exported_bundle, "output": [*OUTPUTS]}
    for number in (1, 2):
        done = deploykit.predict(photo_folder, shard=f"{number}/2", **options)
    assert (done.rows, done.files) == (45, 45)
    assert "deploykit" in repr(done)
    with pytest.raises(InputError, match="holds no run"):
        deploykit.collect("nowhere")
    assert deploykit.collect("rows.csv.run").tally.rows == 45
    assert contents() == whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output": "-"}, "output must be a file"),
        ({"resume": True}, "Name a table as well"),
        ({"html": "p.html"}, "Name a table as well"),
        ({"shard": "1/2"}, "Name a table as well"),
        ({"output": "rows.csv", "shard": "2"}, "counted from 1"),
    ],
)
def test_python_refuses_impossible_outputs(exported_bundle, photo_folder, options, said):
    with pytest.raises(UsageError) as caught:
        deploykit.predict(photo_folder, bundle=exported_bundle, **options)
    assert said in f"{caught.value.message} {caught.value.hint}"
