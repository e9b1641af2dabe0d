import csv
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.commands.predict.tables import check_outputs, json_line, write_table
from deploykit.errors import DependencyError, InputError, UsageError
from deploykit.specs.prediction import Prediction, Ranked

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
    check_outputs([path])
    write_table(path, predictions, top_k=top_k)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def test_table_csv_in_full(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", GOOD, BROKEN)
    assert path.read_bytes().decode("utf-8-sig").split("\r\n") == [
        "path,status,reason,label,probability,margin,expected,"
        "label_1,probability_1,label_2,probability_2",
        "dog/a.jpg,ok,,dog,0.75,1.5,cat,dog,0.75,cat,0.25",
        'b.jpg,truncated,"The file ends, too early.",,,,,,,,',
        "",
    ]


def test_table_jsonl_in_full(tmp_path: Path) -> None:
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


def test_table_csv_has_a_bom_and_jsonl_none(tmp_path: Path) -> None:
    assert write(tmp_path / "p.csv", GOOD).read_bytes().startswith(b"\xef\xbb\xbfpath,")
    assert write(tmp_path / "p.jsonl", GOOD).read_bytes().startswith(b'{"path"')


@pytest.mark.parametrize("top_k", [1, 3])
def test_table_columns_follow_top_k(tmp_path: Path, top_k: int) -> None:
    row = read_csv(write(tmp_path / "p.csv", GOOD, top_k=top_k))[0]
    assert [name for name in row if name.startswith("label_")] == [
        f"label_{k}" for k in range(1, top_k + 1)
    ]
    assert (row["label_1"], row.get("label_3", "")) == ("dog", "")
    (row_json,) = read_jsonl(write(tmp_path / "p.jsonl", GOOD, top_k=top_k))
    assert len(row_json["top"]) == min(top_k, 2)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_table_keeps_names(tmp_path: Path, name: str) -> None:
    prediction = Prediction(path=name, label=name, probability=1.0)
    (row,) = read_csv(write(tmp_path / "p.csv", prediction))
    assert (row["path"], row["label"]) == (name, name)
    (row_json,) = read_jsonl(write(tmp_path / "p.jsonl", prediction))
    assert (row_json["path"], row_json["label"]) == (name, name)


@pytest.mark.parametrize("name", FORMULA_NAMES)
def test_table_csv_escapes_formulas(tmp_path: Path, name: str) -> None:
    (row,) = read_csv(write(tmp_path / "p.csv", Prediction(path=name)))
    assert row["path"] == f"./{name}"
    assert tmp_path / row["path"] == tmp_path / name
    (row_json,) = read_jsonl(write(tmp_path / "p.jsonl", Prediction(path=name)))
    assert row_json["path"] == name


@pytest.mark.parametrize(
    "text", [*FORMULA_NAMES, "\n=1", "\uff1d1", "'=1", "''@x", "'t Hooft", "a=1"]
)
def test_table_csv_guards_every_text(tmp_path: Path, text: str) -> None:
    row = Prediction(
        path="a.jpg",
        status=text,
        reason=text,
        label=text,
        probability=0.5,
        margin=-1.0,
        expected=text,
        top=(Ranked(label=text, probability=0.5), Ranked(label="b", probability=0.5)),
    )
    (cells,) = read_csv(write(tmp_path / "p.csv", row))
    for name in ("status", "reason", "label", "expected", "label_1"):
        assert not cells[name].startswith(tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"))
        # As docs/predict.md takes the guard away.
        assert re.sub(r"^'(?='*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])", "", cells[name]) == text
    assert (cells["label"] == text) == (text in ("'t Hooft", "a=1"))
    assert (cells["margin"], cells["label_2"]) == ("-1.0", "b")
    (row_json,) = read_jsonl(write(tmp_path / "p.jsonl", row))
    assert (row_json["label"], row_json["top"][0]["label"]) == (text, text)


def test_table_numbers_are_exact_as_float32(tmp_path: Path) -> None:
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


def test_json_line_equals_table_in_ascii(tmp_path: Path) -> None:
    rows = [GOOD, BROKEN, *(Prediction(path=name) for name in HOSTILE_NAMES)]
    lines = "".join(json_line(row, 2) for row in rows)
    assert lines.isascii()
    assert [json.loads(line) for line in lines.splitlines()] == read_jsonl(
        write(tmp_path / "p.jsonl", *rows)
    )


def test_table_parquet_in_full(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(write(tmp_path / "p.parquet", GOOD, BROKEN))
    numbers = {"probability", "margin", "probability_1", "probability_2"}
    assert table.schema.names == [
        *("path", "status", "reason", "label", "probability", "margin", "expected"),
        *("label_1", "probability_1", "label_2", "probability_2"),
    ]
    for field in table.schema:
        assert field.type == (pa.float32() if field.name in numbers else pa.string())
        assert field.nullable == (field.name not in {"path", "status", "reason"})
    good, broken = table.to_pylist()
    assert list(good.values()) == [
        *("dog/a.jpg", "ok", "", "dog", 0.75, 1.5, "cat", "dog", 0.75, "cat", 0.25)
    ]
    assert list(broken.values()) == [
        *("b.jpg", "truncated", "The file ends, too early."),
        *[None] * 8,
    ]


def test_table_parquet_keeps_names_in_row_groups(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    names = [*HOSTILE_NAMES, *FORMULA_NAMES] * 3000
    rows = (Prediction(path=name, probability=0.1, margin=0.1) for name in names)
    path = write_all(tmp_path / "p.parquet", rows)
    table = pq.read_table(path)
    assert table["path"].to_pylist() == names
    assert set(table["margin"].to_pylist()) == {float(np.float32(0.1))}
    assert pq.ParquetFile(path).num_row_groups == -(-len(names) // 16_384)


def test_check_outputs_of_parquet_needs_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    check_outputs([tmp_path / "p.csv"])
    with pytest.raises(DependencyError) as caught:
        check_outputs([tmp_path / "p.csv", tmp_path / "p.parquet"])
    assert 'pip install "deploykit[parquet]"' in str(caught.value.hint)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_write_table_interrupted_keeps_the_old_one(tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"p.{ending}"
    path.write_text("old")

    def interrupted() -> Iterable[Prediction]:
        yield GOOD
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(path, interrupted())
    assert path.read_text() == "old"
    assert write(path, GOOD).read_bytes() != b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_write_table_without_rows(tmp_path: Path) -> None:
    assert write(tmp_path / "p.csv").read_bytes().startswith(b"\xef\xbb\xbfpath,")
    assert write(tmp_path / "p.jsonl").read_bytes() == b""
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    assert pq.read_table(write(tmp_path / "p.parquet")).num_rows == 0


def test_check_outputs_refuses_impossible_paths(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, problem, hint in [
        ("p.xlsx", "does not say its format", ".csv, .jsonl, .parquet"),
        ("p", "does not say its format", ".csv, .jsonl, .parquet"),
        ("folder.csv", "is a folder", "output.csv"),
        ("nowhere/p.csv", "nowhere does not exist", "Create it"),
    ]:
        with pytest.raises(UsageError, match=problem) as caught:
            check_outputs([tmp_path / "fine.csv", tmp_path / name])
        assert hint in str(caught.value.hint)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.csv"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no file")
def test_check_outputs_refuses_a_read_only_folder() -> None:
    with pytest.raises(UsageError, match="/proc/self cannot be written to: the system") as caught:
        check_outputs([Path("/proc/self/p.csv")])
    assert "permissions" in str(caught.value.hint)


def test_write_table_held_open_by_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(InputError, match=r"p\.csv failed: Permission denied") as caught:
        write(tmp_path / "p.csv", GOOD)
    assert "close the program" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []
