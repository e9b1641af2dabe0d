"""The page of models that give several labels, or one of two by a threshold."""

import json
import re
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from chromium import open_browser

from deploykit.commands.predict.page import write_prediction_page
from deploykit.commands.predict.tally import Tally
from deploykit.html.thumbnails import MOST_THUMBNAILS
from deploykit.proof.policy import Status
from deploykit.specs.heads import Binary, MultiLabel
from deploykit.specs.model import Labels
from deploykit.specs.prediction import Prediction, Ranked
from deploykit.specs.session import SessionSpec

NAMES = ("cat", "dog", "owl")
SEVERAL = Labels(names=NAMES, source="made", head=MultiLabel(thresholds=(0.5, 0.5, 0.25)))
TWO = Labels(names=("no", "yes"), source="made", head=Binary(thresholds=(0.7,)))
SPEC = SessionSpec(
    runtime="onnxruntime-cpu",
    graph="deploy/fp32.onnx",
    precision="fp32",
    device="CPU",
    input_size=(16, 16),
    classes=3,
)


def answer(path, expected, **probabilities):
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    limits = dict(zip(NAMES, SEVERAL.head.thresholds, strict=True))
    return Prediction(
        path=path,
        labels=tuple(name for name, value in ranked if value > limits[name]),
        margin=0.5,
        expected_labels=expected,
        top=tuple(Ranked(label=name, probability=value) for name, value in ranked),
    )


ROWS = (
    answer("a.png", ("cat", "dog"), cat=0.9, dog=0.8, owl=0.1),
    answer("b.png", ("cat",), cat=0.4, dog=0.7, owl=0.3),
    answer("c.png", (), cat=0.1, dog=0.2, owl=0.2),
    answer("d.png", ("owl", "dog"), cat=0.2, dog=0.1, owl=0.6),
    answer("e.png", None, cat=0.2, dog=0.1, owl=0.6),
    Prediction(path="f.png", status="truncated", reason="It is empty.", expected_labels=("dog",)),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def write(folder, rows, labels=SEVERAL):
    run = SimpleNamespace(
        bundle=SimpleNamespace(name="birds", manifest=SimpleNamespace(labels=labels)),
        spec=SPEC,
        root=folder,
        tally=Tally(),
        stage_seconds={},
        status=Status("unproven", None, "nobody tried"),
    )
    write_prediction_page(run, rows, folder / "p.html")
    return folder / "p.html"


def data_of(path, name):
    found = re.search(f'id="{name}">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(found[1])


def names(page):
    return page.evaluate("[...document.querySelectorAll('.card .name')].map(n => n.textContent)")


def texts(page, selector):
    found = page.evaluate(f"[...document.querySelectorAll({selector!r})].map(e => e.innerText)")
    return [re.sub(r"\s+", " ", each.replace("\u202f", "")).strip() for each in found]


def test_page_of_several_labels_holds_lists(tmp_path):
    path = write(tmp_path, ROWS)
    assert data_of(path, "rows-data")[1] == [
        *("b.png", [0], [1, 2], None, 0.5),
        *(1, 0.7, 0, 0.4, 2, 0.3),
    ]
    assert data_of(path, "rows-data")[5] == ["f.png", [1], "truncated", "It is empty."]
    # cat: 0.9, 0.4 of 4; dog: 0.8 right, 0.7 and 0.2 wrong, 0.1 right; owl: 0.6 right.
    assert data_of(path, "average-precisions-data") == [1.0, 0.75, 1.0]
    html = path.read_text(encoding="utf-8")
    assert "50.0\u202f%</strong> exact match" in html
    assert "91.7\u202f%</strong> mean average precision" in html


def test_page_without_all_probabilities_says_how_to_get_them(tmp_path):
    rows = [msgspec.structs.replace(row, top=row.top[:2]) for row in ROWS]
    path = write(tmp_path, rows)
    assert data_of(path, "average-precisions-data") == [None] * 3
    assert "predict with <code>--top-k all</code>" in path.read_text(encoding="utf-8")


def test_page_thumbnails_of_several_labels(tmp_path):
    rows = [
        msgspec.structs.replace(ROWS[0], path=f"{i}.png", margin=i + 1.0)
        for i in range(MOST_THUMBNAILS + 500)
    ]
    rows[2200] = msgspec.structs.replace(ROWS[3], path="wrong.png", margin=9999.0)
    rows[2300] = msgspec.structs.replace(ROWS[2], path="none.png", margin=9998.0)
    chosen = {index for index, _ in data_of(write(tmp_path, rows), "thumbnails-data")}
    assert {0, 799, 2200, 2300} <= chosen
    assert len(chosen) <= MOST_THUMBNAILS


def test_page_of_binary_shows_what_was_decided_for(tmp_path):
    top = (Ranked(label="no", probability=0.4), Ranked(label="yes", probability=0.6))
    row = Prediction(path="a.png", label="no", probability=0.6, margin=0.4, expected="yes", top=top)
    path = write(tmp_path, [row], TWO)
    assert data_of(path, "rows-data") == [["a.png", 1, 0, 0.4, 0.4, 0, 0.4, 1, 0.6]]
    assert data_of(path, "head-data")["thresholds"] == [None, 0.7]
    assert data_of(path, "average-precisions-data") == [None, 1.0]


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        ("class=owl", ["b.png", "d.png", "e.png"]),
        ("class=dog", ["a.png", "b.png"]),
        ("expected=dog", ["a.png", "d.png", "f.png"]),
        ("filter=right", ["a.png", "c.png"]),
        ("filter=wrong", ["b.png", "d.png"]),
        ("filter=extra", ["b.png"]),
        ("missing=dog", ["d.png"]),
        ("extra=owl", ["b.png"]),
    ],
)
def test_page_of_several_labels_filters_by_class(browser, tmp_path, view, shown):
    page = browser.open(f"{write(tmp_path, ROWS).as_uri()}#{view}")
    assert names(page) == shown
    assert page.complaints == []


def test_page_of_several_labels_shows_chips_and_classes(browser, tmp_path):
    page = browser.open(write(tmp_path, ROWS).as_uri())
    cards = texts(page, ".card .chips")
    assert cards[:2] == ["cat 90% dog 80%", "extra: dog 70% extra: owl 30% missing: cat 40%"]
    assert cards[2:] == ["no label", "owl 60% missing: dog 10%", "owl 60%", ""]
    assert texts(page, ".card .badge")[:4] == ["", "3 wrong", "", "1 missing"]
    assert texts(page, "#class-table tbody tr") == [
        "cat 2 50.0% 100.0% 100.0% 1 0",
        "dog 2 50.0% 50.0% 75.0% 1 1",
        "owl 1 100.0% 50.0% 100.0% 0 1",
    ]
    assert page.evaluate("document.querySelector('.matrix')") is None
    page.evaluate("document.querySelectorAll('.card')[1].click()")
    assert texts(page, "#photo .verdict") == ["wrong: expected cat"]
    assert texts(page, "#photo .ranking li") == [
        *("dog extra 70.0%", "cat missing 40.0%", "owl extra 30.0%")
    ]
    marks = page.evaluate("[...document.querySelectorAll('.threshold')].map(e => e.style.left)")
    assert marks == ["50%", "50%", "25%"]


def test_page_of_many_labels_is_quick_and_narrow(browser, tmp_path):
    labels = Labels(
        names=tuple(f"a long name of a class {i}" for i in range(20)),
        source="made",
        head=MultiLabel(thresholds=(0.5,) * 20),
    )
    scores = np.random.default_rng(0).random((10_000, 20)).round(3)
    ranking = np.argsort(-scores, axis=1)
    rows = (
        Prediction(
            path=f"{i}.png",
            labels=tuple(labels.names[k] for k in order if values[k] > 0.5),
            margin=0.1,
            expected_labels=labels.names[:2],
            top=tuple(Ranked(label=labels.names[k], probability=values[k]) for k in order[:3]),
        )
        for i, (values, order) in enumerate(zip(scores.tolist(), ranking.tolist(), strict=True))
    )
    page = browser.open(write(tmp_path, rows, labels).as_uri(), width=360)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert any("+" in chips for chips in texts(page, ".card .chips"))
    page.evaluate("location.hash = 'filter=missing&sort=name'")
    page.evaluate("new Promise(done => setTimeout(done, 0))")
    assert len(names(page)) == 60
    assert page.complaints == []
