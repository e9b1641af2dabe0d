import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import InputError, UsageError
from deploykit.report.tables import open_table
from deploykit.specs import Prediction, Ranked

GOOD = Prediction(
    path="dog/a.jpg",
    label="dog",
    probability=0.75,
    margin=1.5,
    expected="cat",
    top=(Ranked(label="dog", probability=0.75), Ranked(label="cat", probability=0.25)),
)
BROKEN = Prediction(path="b.jpg", status="truncated", reason="The file ends, too early.")
HOSTILE_NAMES = [
    'quo"te.jpg',
    "com,ma.jpg",
    "new\nline.jpg",
    "carriage\rreturn.jpg",
    " space ",
    "鸟/图\u2028片.jpg",
    "back\\slash.jpg",
]
FORMULA_NAMES = ["=1+1.jpg", "+1.jpg", "-1.jpg", "@sum.jpg", "\tx.jpg", "\rx.jpg"]


def write(path: Path, *predictions: Prediction, top_k: int = 2) -> Path:
    return write_all(path, predictions, top_k)


def write_all(path: Path, predictions: Iterable[Prediction], top_k: int = 2) -> Path:
    with open_table(path, top_k=top_k) as table:
        for prediction in predictions:
            table.write(prediction)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def test_csv_in_full(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", GOOD, BROKEN)
    assert path.read_bytes().decode("utf-8-sig").split("\r\n") == [
        "path,status,reason,label,probability,margin,expected,"
        "label_1,probability_1,label_2,probability_2",
        "dog/a.jpg,ok,,dog,0.75,1.5,cat,dog,0.75,cat,0.25",
        'b.jpg,truncated,"The file ends, too early.",,,,,,,,',
        "",
    ]


def test_jsonl_in_full(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", GOOD, BROKEN)
    assert [list(row.items()) for row in read_jsonl(path)] == [
        [
            ("path", "dog/a.jpg"),
            ("status", "ok"),
            ("reason", ""),
            ("label", "dog"),
            ("probability", 0.75),
            ("margin", 1.5),
            ("expected", "cat"),
            (
                "top",
                [{"label": "dog", "probability": 0.75}, {"label": "cat", "probability": 0.25}],
            ),
        ],
        [
            ("path", "b.jpg"),
            ("status", "truncated"),
            ("reason", "The file ends, too early."),
            ("label", None),
            ("probability", None),
            ("margin", None),
            ("expected", None),
            ("top", []),
        ],
    ]


def test_excel_is_told_that_csv_is_utf8_and_jsonl_has_no_mark(tmp_path: Path) -> None:
    assert write(tmp_path / "p.csv", GOOD).read_bytes().startswith(b"\xef\xbb\xbfpath,")
    assert write(tmp_path / "p.jsonl", GOOD).read_bytes().startswith(b'{"path"')


@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k_decides_how_many_answers_there_are(tmp_path: Path, top_k: int) -> None:
    row = read_csv(write(tmp_path / "p.csv", GOOD, top_k=top_k))[0]
    assert [name for name in row if name.startswith("label_")] == [
        f"label_{k}" for k in range(1, top_k + 1)
    ]
    assert (row["label_1"], row.get("label_3", "")) == ("dog", "")
    (row_json,) = read_jsonl(write(tmp_path / "p.jsonl", GOOD, top_k=top_k))
    assert len(row_json["top"]) == min(top_k, 2)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_survive(tmp_path: Path, name: str) -> None:
    prediction = Prediction(path=name, label=name, probability=1.0)
    (row,) = read_csv(write(tmp_path / "p.csv", prediction))
    assert (row["path"], row["label"]) == (name, name)
    (row_json,) = read_jsonl(write(tmp_path / "p.jsonl", prediction))
    assert (row_json["path"], row_json["label"]) == (name, name)


@pytest.mark.parametrize("name", FORMULA_NAMES)
def test_a_name_is_no_formula_and_still_leads_to_the_file(tmp_path: Path, name: str) -> None:
    (row,) = read_csv(write(tmp_path / "p.csv", Prediction(path=name)))
    assert row["path"] == f"./{name}"
    assert tmp_path / row["path"] == tmp_path / name
    (row_json,) = read_jsonl(write(tmp_path / "p.jsonl", Prediction(path=name)))
    assert row_json["path"] == name


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_character_that_is_no_unicode_does_not_end_the_run(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"p.{ending}", Prediction(path="a", label="caf\udce9"), GOOD)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum("caf\\udce9" in line for line in lines) == 1
    assert "dog/a.jpg" in lines[-1]


def test_numbers_are_short_and_exact_as_float32_in_both_formats(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(200, dtype=np.float32) * np.float32(3) ** np.arange(
        -100, 100, dtype=np.float32
    ).clip(-20, 20)
    rows = [
        Prediction(path="x", probability=float(value), margin=-float(value)) for value in values
    ]
    cells = read_csv(write(tmp_path / "p.csv", *rows))
    lines = (write(tmp_path / "p.jsonl", *rows)).read_text(encoding="utf-8").splitlines()
    for value, row, line in zip(values, cells, lines, strict=True):
        assert np.float32(float(row["probability"])) == value
        assert np.float32(float(row["margin"])) == -value
        assert f'"probability": {row["probability"]}, "margin": {row["margin"]},' in line
    assert max(len(row["probability"].lstrip("0.")) for row in cells) <= 14
    (row,) = read_csv(write(tmp_path / "p.csv", Prediction(path="x", probability=0.1)))
    assert row["probability"] == "0.1"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_old_table_stays_until_the_new_one_is_whole(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"p.{ending}"
    path.write_text("old")
    with open_table(path, top_k=1) as table:
        table.write(GOOD)
        assert path.read_text() == "old"
        assert table.partial.name == f"p.{ending}.partial"
        assert table.rows == 1
    assert "dog/a.jpg" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_rows_reach_the_disk_as_they_come(tmp_path: Path) -> None:
    with open_table(tmp_path / "p.jsonl", top_k=1) as table:
        for _ in range(250):
            table.write(GOOD)
        assert len(read_jsonl(table.partial)) >= 200


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_the_rows_so_far(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    path = tmp_path / "p.csv"
    path.write_text("old")

    def interrupted() -> Iterator[Prediction]:
        yield GOOD
        raise interruption

    with pytest.raises(interruption):
        write_all(path, interrupted())
    assert path.read_text() == "old"
    assert [row["path"] for row in read_csv(tmp_path / "p.csv.partial")] == ["dog/a.jpg"]


def test_an_interruption_before_the_first_row_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_table(tmp_path / "p.csv", top_k=1):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_rows_is_a_table(tmp_path: Path) -> None:
    assert write(tmp_path / "p.csv").read_bytes().startswith(b"\xef\xbb\xbfpath,")
    assert write(tmp_path / "p.jsonl").read_bytes() == b""


def test_endings_may_be_in_capitals(tmp_path: Path) -> None:
    assert len(read_csv(write(tmp_path / "P.CSV", GOOD))) == 1


def test_outputs_that_cannot_be_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, problem, hint in [
        ("p.xlsx", "does not say its format", ".csv, .jsonl"),
        ("p", "does not say its format", ".csv, .jsonl"),
        ("folder.csv", "is a folder", "predictions.csv"),
        ("nowhere/p.csv", "nowhere does not exist", "Create it"),
    ]:
        with pytest.raises(UsageError, match=problem) as caught:
            open_table(tmp_path / name, top_k=1)
        assert hint in str(caught.value.hint)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.csv"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "p.csv.partial").mkdir()  # root writes anywhere, but not over a folder
    with pytest.raises(UsageError, match=r"Writing .*p\.csv failed"):
        write(tmp_path / "p.csv", GOOD)
    (tmp_path / "p.csv.partial").rmdir()
    assert list(tmp_path.iterdir()) == []
    assert len(read_csv(write(tmp_path / "p.csv", GOOD))) == 1


@pytest.mark.parametrize("rows_of_the_second", [0, 1])
def test_a_table_has_one_writer(tmp_path: Path, rows_of_the_second: int) -> None:
    path = tmp_path / "p.csv"
    with open_table(path, top_k=1) as table:
        table.write(GOOD)
        with pytest.raises(UsageError, match=r"Another run is writing .*p\.csv") as caught:
            write(path, *[BROKEN] * rows_of_the_second)
        assert "--output" in str(caught.value.hint)
        write(tmp_path / "p.jsonl", BROKEN)
        table.write(GOOD)
    assert [row["path"] for row in read_csv(path)] == ["dog/a.jpg", "dog/a.jpg"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["p.csv", "p.jsonl"]
    assert [row["path"] for row in read_csv(write(path, BROKEN))] == ["b.jpg"]


def test_a_run_that_was_killed_keeps_none_out(tmp_path: Path) -> None:
    for left in ("p.csv.partial", "p.csv.partial.lock"):
        (tmp_path / left).write_text("left")
    assert len(read_csv(write(tmp_path / "p.csv", GOOD))) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.csv"]


def test_a_table_that_another_program_holds_open_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(InputError, match=r"Permission denied.*rows so far are in") as caught:
        write(tmp_path / "p.csv", GOOD)
    assert "close the program" in str(caught.value.hint)
    assert len(read_csv(tmp_path / "p.csv.partial")) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl.partial").symlink_to("/dev/full")
    with pytest.raises(
        InputError, match=r"p\.jsonl failed: No space left.*\.partial\.\n"
    ) as caught:
        write(tmp_path / "p.jsonl", *[GOOD] * 1000)
    assert caught.value.exit_code == 4
    assert "free space" in str(caught.value.hint)
