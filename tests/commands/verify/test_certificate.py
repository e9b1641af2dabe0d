"""The certificate of a verification, in a real browser where there is one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from chromium import Browser, Page, open_browser
from made_verifications import (
    BIRDS,
    made_bundle,
    made_layers,
    made_logits,
    made_stages,
    made_verification,
    moved,
)
from PIL import Image

from deploykit.commands.diagnose.text import BrokenDiagnosis
from deploykit.commands.verify.certificate import write_certificate
from deploykit.commands.verify.claims import RECORDED_ONLY
from deploykit.commands.verify.headline import headline_of, outcome_of
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.scatter import MOST_POINTS, compared_photos, scatter_of
from deploykit.errors import InputError
from deploykit.html.words import bound, number
from deploykit.parity.mining import MarginMining
from deploykit.parity.tolerance import Tolerance
from deploykit.specs.labels import Labels

FP32, FP16 = "deploy/fp32.onnx", "deploy/fp16.onnx"
LOGITS = np.array([[3, 1, 0], [0, 2, 1.5], [0, 0.4, 0.5], [4, 0, 1]], np.float32)
#: The second photo turns from dog to owl, the third from owl to dog within what FP16 can resolve.
FLIPPED = np.array([[3, 1, 0], [0, 1.6, 1.9], [0, 0.4, 0.5], [4, 0, 1]], np.float32)
PATHS = ("cat/a.png", "dog/b.png", "owl/c.png", "cat/gone.png")
EXPECTED = {"cat/a.png": "cat", "dog/b.png": "dog", "owl/c.png": "cat", "cat/gone.png": "cat"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, colour in (("cat/a", "red"), ("dog/b", "green"), ("owl/c", "blue")):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 200), colour).save(path)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def four_photos(folder: Path | None, candidate: np.ndarray = FLIPPED, **changes: object):
    facts = {"paths": PATHS, "expected": EXPECTED, "folder": folder, **changes}
    return made_verification(LOGITS, {FP32: candidate}, **facts)


def write(folder: Path, verification: Verification, **more: object) -> Path:
    labels = more.pop("labels", BIRDS)
    name = more.pop("name", "birds")
    path = folder / "certificate.html"
    write_certificate(path, made_bundle(folder, labels, name), verification, **more)
    return path


def said(path: Path) -> str:
    """What the page says, without its markup."""
    html = path.read_text(encoding="utf-8")
    return squeezed(re.sub(r"<[^>]*>", " ", html[html.index("<header") :]))


def squeezed(text: str) -> str:
    return re.sub(r"[ \n\t]+", " ", text).strip()


def text(page: Page, selector: str) -> str:
    return squeezed(page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))


# The verdict.


def test_a_passed_verdict_says_what_it_means(tmp_path: Path) -> None:
    logits = made_logits(225)
    verification = made_verification(
        logits, {"model.onnx": logits, FP32: moved(logits, 1e-6)}, folder=tmp_path / "none"
    )
    headline = headline_of(verification, None, ())
    assert headline.outcome == "passed"
    assert headline.sentence == "The deployed model decides as the trained one does."
    assert headline.meaning == (
        "All 225 photos got the same answer from the trained model and from each of the 2 "
        "deployed ones.",
        "If the photos to come are like these, at most 1.3\u202f% of the decisions will differ "
        "from those of the trained model, with 95\u202f% confidence.",
    )
    assert headline.reservations == (
        "Whether the answers are right is another question: these photos have no labels.",
    )


OTHER = "torch module dpn92 from other.pth (0123456789ab)"


@pytest.mark.parametrize(
    ("changes", "holds", "fails", "limit"),
    [
        (
            {"reference_kind": "golden", "reference": "answers recorded in golden.npz"},
            "still gives the answers recorded at export",
            "no longer gives the answers recorded at export",
            "not with the trained model",
        ),
        (
            {"reference_kind": "graph", "reference": "model.onnx on onnxruntime-cpu"},
            "decides as model.onnx does",
            "does not decide as model.onnx does",
            "The trained model itself was not asked",
        ),
        (
            {"is_recorded": False, "reference": OTHER},
            f"decides as the {OTHER} does",
            f"does not decide as the {OTHER} does",
            "no proof of this bundle",
        ),
    ],
)
def test_only_what_was_compared_is_claimed(
    tmp_path: Path, changes: dict[str, object], holds: str, fails: str, limit: str
) -> None:
    passed = four_photos(tmp_path, LOGITS, **changes)
    headline = headline_of(passed, None, ())
    assert headline.sentence.startswith("On 4 ")  # so few that the verdict names them
    assert headline.sentence.endswith(f", the deployed model {holds}.")
    assert limit in headline.reservations[0]
    assert "trained" not in " ".join((headline.sentence, *headline.meaning))
    failed = headline_of(four_photos(tmp_path, **changes), None, ())
    assert failed.sentence == f"The deployed model {fails}."
    page = said(write(tmp_path, passed))
    assert "exported from best_model.pth " + "c" * 64 + " not compared here" in page
    assert "checkpoint best_model.pth" not in page


@pytest.mark.parametrize("kind", ["golden", "generated"])
def test_images_that_are_no_sample_give_no_bound(tmp_path: Path, kind: str) -> None:
    verification = made_verification(LOGITS, {FP32: LOGITS}, paths=PATHS)
    photos = msgspec.structs.replace(verification.photos, kind=kind)
    verification = replace(verification, photos=photos)
    headline = headline_of(verification, None, ())
    words = {"golden": "chosen at export for their margins", "generated": "generated images"}
    assert words[kind] in headline.meaning[1]
    assert "95" not in " ".join(headline.meaning)
    assert "no bound" in said(write(tmp_path, verification))


def test_a_walk_that_broke_off_fails_the_page(tmp_path: Path) -> None:
    broken = BrokenDiagnosis("stages", "There is no torch.", "Install it.", 5)
    headline = headline_of(four_photos(tmp_path, LOGITS), None, (), [broken])
    assert headline.outcome == "failed"
    assert headline.meaning[0] == "The walk over the stages could not be made: There is no torch."
    page = said(write(tmp_path, four_photos(tmp_path, LOGITS), broken_off=[broken]))
    assert "There is no torch." in page


def test_where_the_stages_fail_no_more_is_claimed_than_the_recorded_preprocessing(
    tmp_path: Path,
) -> None:
    stages = made_stages(made_logits(60), fault=True)
    headline = headline_of(four_photos(tmp_path, LOGITS), stages, ())
    assert headline.sentence == (
        "The deployed model decides as the trained one does with the recorded preprocessing, but "
        "a fault was found."
    )
    assert "photos that go through the recorded preprocessing" in headline.meaning[-1]


def test_flips_that_the_verdict_condemns_fail_the_page_though_few_of_all(tmp_path: Path) -> None:
    verification = four_photos(tmp_path)
    (verdict,) = verification.verdicts
    assert outcome_of(verdict) == "failed"
    allowed = Tolerance(max_flip_rate=1.0)
    excused = msgspec.structs.replace(verdict, reasons=(), tolerance=allowed)
    assert outcome_of(excused) == "passed"
    assert outcome_of(excused.refused("the reference is not proven")) == "unproven"


def test_a_note_is_shown(tmp_path: Path) -> None:
    verification = four_photos(tmp_path)
    note = "the proof of 2026-11-21 stands"
    verdicts = tuple(msgspec.structs.replace(each, note=note) for each in verification.verdicts)
    page = said(write(tmp_path, replace(verification, verdicts=verdicts)))
    assert "The proof of 2026-11-21 stands." in page


def test_a_failed_verdict_says_what_to_do(tmp_path: Path) -> None:
    headline = headline_of(four_photos(tmp_path), None, ())
    assert headline.outcome == "failed"
    assert headline.sentence == "The deployed model does not decide as the trained one does."
    assert headline.meaning[:2] == (
        "1 of 4 decisions changed in deploy/fp32.onnx.",
        "Do not deploy it as it is.",
    )
    assert "verify --stages" in headline.meaning[2]


def test_errors_without_flips_and_values_that_are_no_numbers_fail(tmp_path: Path) -> None:
    headline = headline_of(four_photos(tmp_path, moved(LOGITS, 0.01)), None, ())
    assert headline.sentence == "The deployed model's answers moved further than is allowed."
    broken = LOGITS.copy()
    broken[1, 1] = np.nan
    verification = four_photos(tmp_path, broken)
    headline = headline_of(verification, None, ())
    assert headline.outcome == "failed"
    assert headline.sentence == "Some of the answers are no numbers at all."
    page = said(write(tmp_path, verification))
    assert "1 of 4 photos cannot be drawn: the answers are not finite numbers" in page


def test_what_shows_nothing_is_neither_passed_nor_failed(tmp_path: Path) -> None:
    ties = np.zeros((4, 3), np.float32)
    undecided = made_verification(ties, {FP32: ties}, paths=PATHS)
    empty = made_verification(LOGITS[:0], {FP32: LOGITS[:0]}, paths=())
    refused = made_verification(LOGITS, {FP32: LOGITS}, paths=PATHS)
    refused = refusing(refused, "the reference itself is not proven")
    nothing = made_verification(LOGITS, {}, paths=PATHS)
    for verification in (undecided, empty, refused, nothing):
        headline = headline_of(verification, None, ())
        assert headline.outcome == "unproven"
        assert "Not proven" in said(write(tmp_path, verification))
    assert headline.meaning[0] == "No candidate was compared."


def refusing(verification: Verification, reason: str) -> Verification:
    verdicts = tuple(verdict.refused(reason) for verdict in verification.verdicts)
    return made_verification(
        verification.answers.reference,
        {FP32: verification.answers.candidates[0]},
        paths=PATHS,
        verdicts=verdicts,
    )


def test_a_fault_on_the_way_fails_what_decides_alike(tmp_path: Path) -> None:
    verification = four_photos(tmp_path, LOGITS)
    logits = made_logits(60)
    assert headline_of(verification, made_stages(logits, fault=False), ()).outcome == "passed"
    stages = headline_of(verification, made_stages(logits, fault=True), ())
    assert stages.outcome == "failed"
    assert stages.meaning[0] == (
        "To blame: resize. Training used bicubic, the bundle records bilinear."
    )
    nameless = msgspec.structs.replace(made_stages(logits, fault=True), findings=())
    assert headline_of(verification, nameless, ()).meaning[0] == (
        "To blame: resize. Bilinear instead of bicubic."
    )
    layers = headline_of(verification, None, [made_layers(fault=True)])
    assert layers.outcome == "failed"
    assert layers.meaning[0] == (
        "To blame in deploy/fp16.onnx: node_conv2d_3 (Conv of features.3)."
    )
    assert headline_of(verification, None, [made_layers(fault=False)]).outcome == "passed"


def test_a_fault_fails_what_else_would_be_unproven(tmp_path: Path) -> None:
    ties = np.zeros((4, 3), np.float32)
    undecided = made_verification(ties, {FP32: ties}, paths=PATHS)
    headline = headline_of(undecided, None, [made_layers(fault=True)])
    assert headline.outcome == "failed"
    walked_nothing = msgspec.structs.replace(made_stages(made_logits(60), fault=False), steps=())
    headline = headline_of(four_photos(None, LOGITS), walked_nothing, ())
    assert headline.outcome == "failed"
    assert headline.meaning[0] == "The walk over the stages compared nothing."


def test_what_is_left_open_is_said(tmp_path: Path) -> None:
    logits = made_logits(300)
    flat = logits.copy()
    flat[0] = (1.01, 1.0, 0)
    mining = MarginMining(
        budget=300,
        compared=300,
        ranked=900,
        ranked_by="deploy/fp32.onnx on onnxruntime-cpu",
        ranking_error=1e-6,
        smallest_left_out=0.5,
        apart={FP16: 0.01},
    )
    verification = made_verification(flat, {FP16: flat}, unreadable=3, mining=mining)
    open_questions = " ".join(headline_of(verification, None, ()).reservations)
    for expected in (
        "deploy/fp16.onnx was rehearsed on a model of fp16 hardware",
        "of 300 images are too close to call in fp16",
        "It was compared on the bundle's 300 golden images",
        "3 more photos could not be read",
        "900 photos were ranked by the margins",
        "The smallest margin of the 600 that were left out is 0.5",
    ):
        assert expected in open_questions
    assert "have no labels" not in open_questions  # a sample by margin is not held against them


# What stands on the page.


def test_what_was_compared_stands_in_the_page_itself(tmp_path: Path, photos: Path) -> None:
    page = said(write(tmp_path, four_photos(photos)))
    assert "best_model.pth " + "c" * 64 in page
    assert "model.onnx " + "1" * 64 in page
    assert "deploy/fp32.onnx " + "2" * 64 in page
    assert "3" * 64 not in page  # a graph that was not compared
    assert f"4 photos of {photos}" in page
    assert "16 x 16 pixels, height x width, stretched" in page
    assert "1 of 4 images changed their class; at most 0.0% may" in page
    assert "numpy 2.4.6" in page


def test_a_flip_stands_with_both_answers_and_its_photo(tmp_path: Path, photos: Path) -> None:
    html = write(tmp_path, four_photos(photos)).read_text(encoding="utf-8")
    flips = re.search(r'<ul class="flips">(.*?)</ul>', html, re.S)
    assert flips
    assert flips[1].count("data:image/jpeg;base64,/9j/") == 1
    told = squeezed(re.sub(r"<[^>]*>", " ", flips[1]))
    assert told.startswith("dog/b.png dog &rarr; owl , expected dog reference dog 57.4\u202f%")
    assert "margin 0.5 candidate owl 52.9\u202f% dog 39.2\u202f%" in told
    assert told.endswith("margin 0.3")


def test_where_nothing_flipped_the_nearest_photos_stand(tmp_path: Path, photos: Path) -> None:
    path = write(tmp_path, four_photos(photos, moved(LOGITS, 1e-5)))
    nearest = re.findall(r'<p class="quiet name"><bdi>(.*?)</bdi>', path.read_text())
    assert sorted(nearest) == sorted(PATHS)
    assert nearest[0] == "owl/c.png"  # by far the smallest margin
    assert said(path).count("cannot be shown") == 1  # cat/gone.png


def test_equal_answers_need_no_picture(tmp_path: Path) -> None:
    page = said(write(tmp_path, four_photos(None, LOGITS)))
    assert "No logit moved at all." in page
    assert "Every dot is a photo" not in page


def test_accuracy_of_both_sides(tmp_path: Path) -> None:
    page = said(write(tmp_path, four_photos(None)))
    assert "75.0\u202f% 3 of 4, errors &le;&#8239;75.1\u202f%" in page  # the reference
    assert "50.0\u202f% 2 of 4, errors &le;&#8239;90.2\u202f%" in page  # the candidate


def test_of_many_classes_those_that_differ_are_shown(tmp_path: Path) -> None:
    labels = Labels(names=tuple(f"class {i}" for i in range(60)), source="made")
    logits = made_logits(120, 60)
    paths = [f"{i}.png" for i in range(120)]
    expected = {path: labels.names[i % 60] for i, path in enumerate(paths)}
    changed = logits.copy()
    changed[59] = -changed[59]
    verification = made_verification(
        logits, {FP32: changed}, labels=labels, paths=paths, expected=expected
    )
    html = write(tmp_path, verification, labels=labels).read_text(encoding="utf-8")
    accuracy = html[html.index('id="accuracy-heading"') :]
    rows = re.findall(r'<th scope="row"><bdi>(.*?)</bdi>', accuracy)
    assert len(rows) == 40
    assert rows[0] == "class 59"
    assert "and 20 more classes" in accuracy


def test_stages_and_layers_name_who_is_to_blame(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        four_photos(None, LOGITS),
        stages=made_stages(made_logits(60), fault=True),
        layers=[made_layers(fault=True)],
    )
    page = said(path)
    assert "Export again with --interpolation bicubic" in page
    assert "bicubic 58 of 60 +4 --interpolation bicubic" in page
    assert "The first node that leaves its tolerance: node_conv2d_3 Conv of features.3" in page
    assert "It adds 0.21, and gives 12 values that are no numbers." in page
    assert "Relu_3 (module features.4) is missing" in page
    html = path.read_text(encoding="utf-8")
    culprits = re.findall(r'<tr class="culprit">\s*<th scope="row">(.*?)</th>', html, re.S)
    assert [re.sub(r"<[^>]*>", "", each).split()[0] for each in culprits] == [
        "resize",
        "node_conv2d_3",
    ]


def test_a_step_that_gave_nothing_to_compare_has_no_numbers(tmp_path: Path) -> None:
    made = made_stages(made_logits(60), fault=False)
    empty = made_stages(made_logits(60)[:0], fault=False).steps[0]
    broken = msgspec.structs.replace(empty, reasons=("it gives no graph that runs",))
    stages = msgspec.structs.replace(made, steps=(*made.steps, broken))
    html = write(tmp_path, four_photos(None, LOGITS), stages=stages).read_text(encoding="utf-8")
    (row,) = re.findall(r'<tr class="culprit">(.*?)</tr>', html, re.S)
    words = re.sub(r"<[^>]*>", " ", row).split()
    assert " ".join(words).endswith("it gives no graph that runs no photo compared")


def test_a_batch_size_does_not_stand_in_line_with_the_stages(tmp_path: Path) -> None:
    made = made_stages(made_logits(60), fault=False)
    batches = msgspec.structs.replace(made.steps[0], stage="batch size")
    stages = msgspec.structs.replace(made, steps=(*made.steps, batches))
    html = write(tmp_path, four_photos(None, LOGITS), stages=stages).read_text(encoding="utf-8")
    (table,) = re.findall(r'<table class="stages">(.*?)</table>', html, re.S)
    last = [re.findall(r"<td.*?</td>", row, re.S)[-1:] for row in table.split("<tr")[2:]]
    assert ["changed" in cell for (cell,) in last] == [True, True, True, False]


def test_a_page_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Writing .* failed"):
        write_certificate(
            tmp_path / "missing" / "page.html", made_bundle(tmp_path), four_photos(None)
        )


def test_numbers_do_not_hide_behind_their_digits() -> None:
    assert [bound(rate) for rate in (0.0132, 0.0003, 0.0)] == [
        "1.3\u202f%", "0.03\u202f%", "0.0\u202f%",
    ]  # fmt: skip
    assert [number(value) for value in (0, 0.01234, 1234.5, float("inf"), float("nan"))] == [
        "0", "0.0123", "1,234", "infinite", "not a number",
    ]  # fmt: skip
    assert number(1.26e-6) == "1.3\u202f\u00b7\u202f10\u207b\u2076"
    assert number(-2e7) == "-2.0\u202f\u00b7\u202f10\u2077"


# The picture.


def test_the_line_parts_what_can_have_changed_from_what_cannot() -> None:
    reference = made_logits(500)
    photos = compared_photos(reference, moved(reference, 0.3))
    picture = scatter_of(photos, undecidable=0.05, allowed=None)
    assert picture is not None
    x1, y1, x2, y2 = picture.line
    for point in picture.points:
        on_the_line = y1 + (point.x - x1) * (y2 - y1) / (x2 - x1)
        above = point.y < on_the_line
        if abs(point.y - on_the_line) > 0.2:  # places are rounded to tenths
            assert above == (2 * point.photo.change >= point.photo.margin)
        if point.photo.kind == "flipped":
            assert above or abs(point.y - on_the_line) <= 0.2
    assert {point.photo.kind for point in picture.points} == {"safe", "close", "flipped"}
    margins = [point.photo.margin for point in picture.points]
    assert margins == sorted(margins)


def test_zeros_are_drawn_at_the_edge() -> None:
    reference = np.array([[1, 1, 0], [2, 1, 0], [3, 0, 0]], np.float32)
    candidate = np.array([[1, 1, 0.1], [2, 1, 0], [3, 0, 0.01]], np.float32)
    picture = scatter_of(compared_photos(reference, candidate), undecidable=0.0, allowed=0.002)
    assert picture is not None
    tie, same, _ = picture.points
    assert tie.x == picture.undecidable == 64
    assert same.y == 346
    assert picture.allowed is not None
    assert 12 < picture.allowed < 346


def test_of_many_photos_the_nearest_are_drawn_one_by_one() -> None:
    reference = made_logits(MOST_POINTS + 3000)
    photos = compared_photos(reference, moved(reference, 0.02))
    picture = scatter_of(photos, undecidable=0.05, allowed=None)
    assert picture is not None
    assert len(picture.points) <= MOST_POINTS
    assert any(picture.shades)
    drawn = {point.photo.index for point in picture.points}
    nearest = sorted(photos, key=lambda photo: photo.room)[:300]
    flips = {photo.index for photo in photos if photo.kind == "flipped"}
    assert flips
    assert flips | {photo.index for photo in nearest if photo.kind != "flipped"} <= drawn | flips
    assert flips <= drawn


# What the page does, in a browser.


def test_loads_without_complaints_or_requests(
    browser: Browser, tmp_path: Path, photos: Path
) -> None:
    path = write(
        tmp_path,
        four_photos(photos),
        stages=made_stages(made_logits(60), fault=True),
        layers=[made_layers(fault=True)],
    )
    for dark in (False, True):
        page = browser.open(path.as_uri(), dark=dark)
        assert page.complaints == []
        assert page.requests == [path.as_uri()]
        assert page.evaluate("[...document.images].map(i => i.naturalWidth)") == [128]
    assert text(page, ".verdict .stamp") == "FAILED"
    assert text(page, ".flips .who") == "dog/b.png dog \u2192 owl, expected dog"


def test_the_keyboard_goes_from_photo_to_photo(browser: Browser, tmp_path: Path) -> None:
    page = browser.open(write(tmp_path, four_photos(None)).as_uri())
    assert page.evaluate("document.querySelector('.tip').hidden") is True
    page.evaluate("document.querySelector('.picture svg').focus()")
    page.press("ArrowRight")
    assert text(page, ".tip") == "owl/c.png owl margin 0.1, moved 0"
    page.press("ArrowRight")
    assert text(page, ".tip") == "dog/b.png dog \u2192 owl margin 0.5, moved 0.4"
    page.press("ArrowLeft")
    assert text(page, ".tip").startswith("owl/c.png")
    page.press("Escape")
    assert page.evaluate("document.querySelector('.tip').hidden") is True


def test_a_pointer_near_a_dot_tells_its_photo(browser: Browser, tmp_path: Path) -> None:
    page = browser.open(write(tmp_path, four_photos(None)).as_uri())
    page.evaluate("document.querySelector('.picture').scrollIntoView()")
    dot = page.evaluate(
        "(({ x, y, width, height }) => [x + width / 2, y + height / 2])"
        "(document.querySelector('.picture circle.flipped').getBoundingClientRect())"
    )
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=dot[0] + 3, y=dot[1])
    assert text(page, ".tip").startswith("dog/b.png")
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=dot[0], y=dot[1] + 60)
    assert page.evaluate("document.querySelector('.tip').hidden") is True


def test_a_narrow_window_does_not_scroll_sideways(
    browser: Browser, tmp_path: Path, photos: Path
) -> None:
    long = "dog/" + "long-name-" * 20 + ".png"
    verification = four_photos(photos, paths=(PATHS[0], long, *PATHS[2:]), expected={long: "dog"})
    path = write(
        tmp_path,
        verification,
        stages=made_stages(made_logits(60), fault=True, hint="--option-" * 20),
        layers=[made_layers(fault=True, node="node_" * 30)],
    )
    page = browser.open(path.as_uri(), width=360)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_paper_shows_all_of_a_table(browser: Browser, tmp_path: Path) -> None:
    labels = Labels(names=tuple(f"class {i}" for i in range(40)), source="made")
    logits, paths = made_logits(40, 40), [f"{i}.png" for i in range(40)]
    verification = made_verification(
        logits,
        {FP32: logits},
        labels=labels,
        paths=paths,
        expected=dict(zip(paths, labels.names, strict=True)),
    )
    page = browser.open(write(tmp_path, verification, labels=labels).as_uri())
    hidden = (
        "[...document.querySelectorAll('.scroll')]"
        ".filter(box => box.scrollHeight > box.clientHeight + 1).length"
    )
    assert page.evaluate(hidden) == 1
    page.send("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate(hidden) == 0


def test_every_control_and_picture_has_a_name(
    browser: Browser, tmp_path: Path, photos: Path
) -> None:
    path = write(tmp_path, four_photos(photos), layers=[made_layers(fault=True)])
    nodes = browser.open(path.as_uri()).send("Accessibility.getFullAXTree")["nodes"]
    wanted = {"button", "image", "link", "region", "img"}
    named = [n for n in nodes if not n["ignored"] and n["role"]["value"] in wanted]
    assert len(named) >= 6
    assert [n["role"]["value"] for n in named if not n["name"]["value"]] == []


def test_ten_thousand_photos_are_a_light_page(browser: Browser, tmp_path: Path) -> None:
    logits = made_logits(10_000)
    verification = made_verification(logits, {FP16: moved(logits, 3e-3)}, folder=tmp_path / "none")
    path = write(tmp_path, verification)
    assert path.stat().st_size < 300_000
    page = browser.open(path.as_uri())
    assert page.complaints == []
    assert page.evaluate("document.querySelectorAll('.picture circle').length") < 500
    assert "at most 0.0" in text(page, ".verdict")
    assert "at most 0.0\u202f%" not in text(page, ".verdict")


# Names that strangers chose.

HOSTILE = (
    "<script>window.injected = 1</script>.png",
    "</script><script>window.injected = 1</script>.png",
    "<!--<script>.png",
    "\"onerror='window.injected = 1' x=\".png",
    "{{ 7 * 7 }}{% raw %}.png",
    "new\nline\u2028.png",
    "\u202egnp.exe",
    "half \udcff pair.png",
    "__proto__",
)


def test_hostile_names_stay_text(browser: Browser, tmp_path: Path, photos: Path) -> None:
    beacon = "<img src='http://127.0.0.1:9/beacon' onerror='window.injected = 1'>"
    labels = Labels(names=(*HOSTILE, beacon), source=beacon)
    logits = made_logits(len(HOSTILE), len(labels))
    stages = made_stages(made_logits(60), fault=True, hint=HOSTILE[1] + beacon)
    verification = made_verification(
        logits,
        {FP32: np.roll(logits, 1, axis=1)},
        folder=photos,
        labels=labels,
        paths=HOSTILE,
        expected=dict.fromkeys(HOSTILE, beacon),
        reference=HOSTILE[1] + beacon,
        versions={"python": beacon},
    )
    path = write(
        tmp_path,
        verification,
        labels=labels,
        name="<b>birds",
        stages=msgspec.structs.replace(stages, beginning=beacon),
        layers=[made_layers(fault=True, node=HOSTILE[0])],
    )
    page = browser.open(path.as_uri())
    page.evaluate("document.querySelector('.picture svg').focus()")
    for _ in HOSTILE:
        page.press("ArrowRight")
        assert page.evaluate("document.querySelector('.tip').innerText")
    assert page.complaints == []
    assert page.requests == [path.as_uri()]
    assert page.evaluate("window.injected") is None
    assert page.evaluate("document.querySelectorAll('main b, main script').length") == 0
    names = page.evaluate("[...document.querySelectorAll('.flips .who bdi:first-child')]"
                          ".map(name => name.textContent)")  # fmt: skip
    assert HOSTILE[0] in names
    assert "new\\u000aline\\u2028.png" in names
    assert "\\u202egnp.exe" in names
    assert "half \\udcff pair.png" in names


def test_a_narrow_page_shows_the_verdict_beside_the_candidate(tmp_path: Path) -> None:
    """What stands further to the right has to be scrolled to."""
    page = said(
        write(tmp_path, four_photos(tmp_path, -LOGITS), stages=made_stages(LOGITS, fault=True))
    )
    assert "candidate verdict changed" in page
    assert "stage verdict change " in page


def test_certificate_tells_what_was_skipped_and_why_the_graph_stands_in(tmp_path: Path) -> None:
    verification = four_photos(tmp_path, LOGITS)
    photos = msgspec.structs.replace(verification.photos, duplicates=1, calibration=2)
    verification = replace(
        verification, photos=photos, reference_kind="graph", obstacle="best_model.pth is not there"
    )
    page = said(write(tmp_path, verification))
    assert page.count("(1 duplicate and 2 calibration images skipped)") == 2
    assert "instead of the trained model: best_model.pth is not there" in page


def test_a_candidate_that_passed_is_limited_by_stages_that_failed(tmp_path: Path) -> None:
    """Whatever became of the other candidates, its proof is kept."""
    mixed = made_verification(LOGITS, {"model.onnx": LOGITS, FP32: -LOGITS}, folder=tmp_path)
    stages = made_stages(LOGITS, fault=True)
    assert RECORDED_ONLY in headline_of(mixed, stages, ()).reservations
    failed = made_verification(LOGITS, {FP32: -LOGITS}, folder=tmp_path)
    assert RECORDED_ONLY not in headline_of(failed, stages, ()).reservations
