"""``verify --against``: another tool's table is compared as any other candidate."""

from __future__ import annotations

import csv
import json

import pytest

from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.commands.verify.text import verification_text, verification_value
from deploykit.errors import InputError, UsageError
from deploykit.parity.budget import Budget
from deploykit.system.progress import Note


@pytest.fixture(scope="module")
def right(exported_bundle, photo_folder):
    """What the bundle itself answers: class and probability by the image's path."""
    import deploykit

    rows = deploykit.predict(photo_folder, bundle=exported_bundle)
    return {row.path: (row.label, row.probability) for row in rows}


@pytest.fixture
def table(tmp_path):
    """Write a CSV."""

    def write(rows, header=("path", "label"), name="other.csv"):
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return path

    return write


@pytest.fixture
def verified(exported_bundle, photo_folder):
    def verify(path, notes=None, **fields):
        def progress(event):
            if notes is not None and isinstance(event, Note):
                notes.append(event.message)

        request = VerifyRequest(against=path, images=photo_folder, **fields)
        return verify_bundle(exported_bundle, request, progress)

    return verify


def test_table_that_agrees_passes(right, table, verified):
    rows = [(path, label, f"{probability:.9g}") for path, (label, probability) in right.items()]
    found = verified(table(rows, ("filename", "predicted_class", "confidence")))
    (verdict,) = found.verdicts
    assert found.passed
    assert (verdict.kind, verdict.candidate.title) == ("told", "other.csv")
    assert verdict.measurement.max_probability_change < 1e-5
    assert not verdict.measurement.has_logits
    assert "other.csv decides as" in verification_text(found)
    assert "the same in each class: other.csv\n" in verification_text(found)


def test_table_with_separators_in_its_strings(right, tmp_path, verified):
    """JSON ends a line at a line feed alone, whatever else Unicode calls a line's end."""
    path = tmp_path / "other.jsonl"
    strange = ({"path": f"{each}.png", "label": ""} for each in "a\u2028b\x85c")
    told = ({"path": name, "label": label} for name, (label, _) in right.items())
    lines = (json.dumps(row, ensure_ascii=False) for row in (*strange, *told))
    path.write_bytes("\r\n".join(lines).encode())
    assert verified(path).table.strangers == 5


def test_table_of_ours_is_known(exported_bundle, photo_folder, tmp_path, verified):
    import deploykit

    for suffix in ("csv", "jsonl", "parquet"):
        path = tmp_path / f"rows.{suffix}"
        deploykit.predict(photo_folder, bundle=exported_bundle, output=path)
        found = verified(path)
        assert found.passed
        assert found.verdicts[0].candidate.gives == "headline"
        assert found.table.rows == found.verdicts[0].measurement.images == 45


def test_table_with_semicolons_and_decimal_commas_passes(right, tmp_path, verified):
    rows = [f"{path};{label};{p:.9f}".replace(".", ",") for path, (label, p) in right.items()]
    path = tmp_path / "other.csv"
    lines = ["path;label;probability", *(row.replace(",png", ".png") for row in rows)]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    found = verified(path)
    assert found.passed
    assert found.verdicts[0].candidate.gives == "headline"


def test_table_that_differs_names_the_photos(right, table, verified):
    rows = [
        (path, "red" if path in ("blue/01.png", "green/02.png") else label)
        for path, (label, _) in right.items()
    ]
    found = verified(table(rows))
    measured = found.verdicts[0].measurement
    assert measured.flips == 2
    assert {flip.path for flip in measured.flipped} == {"blue/01.png", "green/02.png"}
    assert measured.flipped[0].margin >= measured.flipped[1].margin
    assert not measured.has_probabilities
    assert found.verdicts[0].failed
    text = verification_text(found)
    assert "other.csv does not decide as" in text
    assert "2 of 45" in text
    assert verification_value(found)["table"] == {
        "name": "other.csv",
        "rows": 45,
        "strangers": 0,
        "empty": 0,
        "absent": 0,
    }


def test_table_within_a_budget_passes(right, table, verified):
    rows = [(p, "red" if p == "blue/01.png" else label) for p, (label, _) in right.items()]
    path = table(rows)
    assert not verified(path).passed
    assert verified(path, budget=Budget.parse("5%", None)).passed


def test_table_whose_probabilities_differ_fails(right, table, verified):
    rows = [(path, label, p - 0.05) for path, (label, p) in right.items()]
    found = verified(table(rows, ("path", "label", "probability")))
    assert "changes of probability is 0.05" in found.verdicts[0].reasons[0]


def test_table_by_names_and_numbers_counts_what_is_missing(
    right, table, verified, photo_folder, exported_bundle
):
    names = exported_bundle.manifest.labels.names
    rows = [(f"elsewhere/{p}", names.index(label)) for p, (label, _) in right.items()]
    notes = []
    found = verified(table([*rows[3:], ("elsewhere/other.png", 0), ("x.png", "")]), notes)
    assert found.passed
    assert found.verdicts[0].measurement.images == 42
    assert (found.table.strangers, found.table.absent) == (2, 3)
    text = verification_text(found)
    assert "other.csv: 44 rows; 2 match no image; 3 images have no row" in text
    assert any("numbers" in note for note in notes)


def test_table_prefers_a_prediction_to_a_label(right, table, verified):
    rows = [(path, "red", label) for path, (label, _) in right.items()]
    assert verified(table(rows, ("file", "label", "prediction"))).passed


def test_table_without_an_answer_is_counted(right, table, verified):
    rows = [(p, "" if p == "blue/00.png" else label) for p, (label, _) in right.items()]
    found = verified(table(rows))
    assert found.table.empty == 1
    assert found.verdicts[0].measurement.images == 44


def test_table_as_json_lines(right, tmp_path, verified):
    path = tmp_path / "other.jsonl"
    lines = [json.dumps({"image": p, "class": label}) for p, (label, _) in right.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert verified(path).passed


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (("photo_no", "label"), ("1", "red"), "that of the images; its columns: photo_no, label"),
        (("path", "verdict"), ("blue/00.png", "red"), "that of the classes"),
        (("path", "label"), ("blue/00.png", "purple"), "the class 'purple', which the bundle does"),
        (("path", "label", "score"), ("blue/00.png", "red", "93"), "'93', which is no probability"),
        (("path", "label"), ("nowhere.png", "red"), "No row of .* matches an image"),
    ],
)
def test_table_that_cannot_be_compared(table, verified, header, row, message):
    with pytest.raises(InputError, match=message):
        verified(table([row], header))


def test_table_stages_name_the_change(right, table, verified):
    turned = {"red": "blue", "blue": "red", "green": "green"}
    rows = [(path, turned[label]) for path, (label, _) in right.items()]
    found = verified(table(rows), stages=True)
    cause = found.diagnosis.explanations[0].cause
    assert cause.change in ("BGR", "labels blue and red exchanged")
    assert cause.agreed == 45


def test_table_on_a_certificate(right, table, exported_bundle, photo_folder, tmp_path):
    import deploykit

    rows = [(path, "red" if path == "blue/01.png" else label) for path, (label, _) in right.items()]
    page = tmp_path / "certificate.html"
    deploykit.verify(exported_bundle, images=photo_folder, against=table(rows), html=page)
    shown = page.read_text(encoding="utf-8")
    assert "decisions were compared" in shown
    assert "blue/01.png" in shown
    assert "not a number" not in shown


def test_table_with_an_image_twice(table, verified):
    with pytest.raises(InputError, match=r"has 'blue/00.png' twice"):
        verified(table([("blue/00.png", "red")] * 2))


@pytest.mark.parametrize(
    "fields", [{"server": "a"}, {"self_test": True}, {"runtime": "openvino"}, {"layers": True}]
)
def test_table_beside_what_makes_no_sense(table, verified, fields):
    with pytest.raises(UsageError):
        verified(table([]), **fields)
