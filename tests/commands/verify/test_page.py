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
    GRAPHS,
    made_bundle,
    made_layers,
    made_logits,
    made_stages,
    made_verification,
    moved,
)
from PIL import Image

from deploykit.bundle.folder import Bundle
from deploykit.commands.verify.page import write_certificate
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.scatter import MOST_POINTS, movements, scatter_of
from deploykit.errors import InputError
from deploykit.html.words import number
from deploykit.parity.similarity import Similarity
from deploykit.specs.heads import SingleLabel
from deploykit.specs.model import Labels
from deploykit.system.text import bound, has_control_character

FP32, FP16 = "deploy/fp32.onnx", "deploy/fp16.onnx"
SINGLE = SingleLabel()
LOGITS = np.array([[3, 1, 0], [0, 2, 1.5], [0, 0.4, 0.5], [4, 0, 1]], np.float32)
#: The second photo turns from dog to owl, the third from owl to dog within what FP16 can resolve.
FLIPPED = np.array([[3, 1, 0], [0, 1.6, 1.9], [0, 0.4, 0.5], [4, 0, 1]], np.float32)
PATHS = ("cat/a.png", "dog/b.png", "owl/c.png", "cat/gone.png")
EXPECTED = {
    "cat/a.png": ("cat",),
    "dog/b.png": ("dog",),
    "owl/c.png": ("cat",),
    "cat/gone.png": ("cat",),
}


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


# What stands on the page.


def test_certificate_has_the_facts_without_scripts(tmp_path: Path, photos: Path) -> None:
    page = said(write(tmp_path, four_photos(photos)))
    assert "best_model.pth " + "c" * 64 in page
    assert "model.onnx " + "1" * 64 in page
    assert "deploy/fp32.onnx " + "2" * 64 in page
    assert "3" * 64 not in page  # a graph that was not compared
    assert f"4 photos of {photos}" in page
    assert "16 x 16 pixels, height x width, stretched" in page
    assert "1 of 4 images changed their class; at most 0% may" in page
    assert "numpy 2.4.6" in page


def test_certificate_tells_of_embeddings_and_every_step(tmp_path: Path) -> None:
    found = four_photos(None)
    spec = found.verdicts[-1].candidate
    found = replace(found, similarities={spec: Similarity(images=4, smallest=0.999999, path="a")})
    bundle = made_bundle(tmp_path)
    changed = msgspec.structs.replace
    steps = changed(bundle.manifest.preprocessing, antialias=False, grayscale=True)
    bundle = Bundle(bundle.folder, changed(bundle.manifest, preprocessing=steps))
    write_certificate(tmp_path / "page.html", bundle, found)
    told = squeezed(said(tmp_path / "page.html"))
    assert told.count("Embeddings: cosine to torch&#39;s at least 0.99999900 (4 images)") == 1
    assert "bilinear, not antialiased" in told
    assert "grey, scaled to 0 to 1" in told


def test_certificate_flip_has_answers_and_thumbnail(tmp_path: Path, photos: Path) -> None:
    html = write(tmp_path, four_photos(photos)).read_text(encoding="utf-8")
    flips = re.search(r'<ul class="flips">(.*?)</ul>', html, re.S)
    assert flips
    assert flips[1].count("data:image/jpeg;base64,/9j/") == 1
    told = squeezed(re.sub(r"<[^>]*>", " ", flips[1]))
    assert told.startswith("dog/b.png dog &rarr; owl , expected dog reference dog 57.4\u202f%")
    assert "margin 0.5 candidate owl 52.9\u202f% dog 39.2\u202f%" in told
    assert told.endswith("margin 0.3")


def test_certificate_without_flip_shows_lowest_margins(tmp_path: Path, photos: Path) -> None:
    path = write(tmp_path, four_photos(photos, moved(LOGITS, 1e-5)))
    nearest = re.findall(r'<p class="quiet name"><bdi>(.*?)</bdi>', path.read_text())
    assert sorted(nearest) == sorted(PATHS)
    assert nearest[0] == "owl/c.png"  # by far the smallest margin
    assert said(path).count("cannot be shown") == 1  # cat/gone.png


def test_certificate_of_equal_answers_has_no_chart(tmp_path: Path) -> None:
    page = said(write(tmp_path, four_photos(None, LOGITS)))
    assert "No logit moved at all." in page
    assert "Every dot is one" not in page


def test_certificate_folds_candidates_that_say_the_same(tmp_path: Path) -> None:
    logits = made_logits(30)
    near, far, flipped = logits.copy(), logits.copy(), logits.copy()
    near[1, 1] += 1e-5
    far[1, 1] += 1e-6
    flipped[0] = [0, 9, 0]
    found = made_verification(logits, dict(zip(GRAPHS, (far, near, flipped), strict=True)))
    page = write(tmp_path, found).read_text(encoding="utf-8")
    folded = re.findall(r"<summary>.*?</summary>", page, re.S)
    assert len(folded) == 1
    assert "model.onnx" in folded[0]
    assert "says the same as <bdi>deploy/fp32.onnx on onnxruntime-cpu" in folded[0]
    for place in (1, 2, 3):
        assert page.count(f'id="candidate-{place}"') == 1


def test_certificate_accuracy_of_both_sides(tmp_path: Path) -> None:
    page = said(write(tmp_path, four_photos(None)))
    assert "75.0\u202f% 3 of 4, errors &le;&#8239;75.1\u202f%" in page  # the reference
    assert "50.0\u202f% 2 of 4, errors &le;&#8239;90.2\u202f%" in page  # the candidate


def test_certificate_accuracy_says_once_what_is_the_same(tmp_path: Path) -> None:
    found = made_verification(
        LOGITS, {FP32: LOGITS, FP16: FLIPPED}, paths=PATHS, expected=EXPECTED, folder=None
    )
    page = said(write(tmp_path, found))
    assert "The same, class by class: deploy/fp32.onnx on onnxruntime-cpu ." in page
    assert page.count("3 of 4, errors") == page.count("2 of 4, errors") == 1


def test_certificate_of_many_classes_shows_those_that_differ(tmp_path: Path) -> None:
    labels = Labels(names=tuple(f"class {i}" for i in range(60)), source="made")
    logits = made_logits(120, 60)
    paths = [f"{i}.png" for i in range(120)]
    expected = {path: (labels.names[i % 60],) for i, path in enumerate(paths)}
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


def test_certificate_stages_and_layers_name_the_fault(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        four_photos(
            None,
            LOGITS,
            stages=made_stages(made_logits(60), fault=True),
            layers=[made_layers(fault=True)],
        ),
    )
    page = said(path)
    assert "Export again with --interpolation bicubic" in page
    assert "bicubic 58 of 60 +4 --interpolation bicubic" in page
    assert "The first node that leaves its tolerance: node_conv2d_3 Conv of features.3" in page
    assert "It adds 0.21, and gives 12 values that are no numbers." in page
    assert "Relu_3 (module features.4) is missing" in page
    html = path.read_text(encoding="utf-8")
    faulty = re.findall(r'<tr class="at-fault">\s*<th scope="row">(.*?)</th>', html, re.S)
    assert [re.sub(r"<[^>]*>", "", each).split()[0] for each in faulty] == [
        "resize",
        "node_conv2d_3",
    ]


def test_certificate_step_without_answers_has_no_numbers(tmp_path: Path) -> None:
    made = made_stages(made_logits(60), fault=False)
    empty = made_stages(made_logits(60)[:0], fault=False).steps[0]
    broken = msgspec.structs.replace(empty, reasons=("it gives no graph that runs",))
    stages = msgspec.structs.replace(made, steps=(*made.steps, broken))
    html = write(tmp_path, four_photos(None, LOGITS, stages=stages)).read_text(encoding="utf-8")
    (row,) = re.findall(r'<tr class="at-fault">(.*?)</tr>', html, re.S)
    words = re.sub(r"<[^>]*>", " ", row).split()
    assert " ".join(words).endswith("it gives no graph that runs no image compared")


def test_write_certificate_that_fails(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Writing .* failed"):
        write_certificate(
            tmp_path / "missing" / "page.html", made_bundle(tmp_path), four_photos(None)
        )


def test_bound_and_number_keep_significant_digits() -> None:
    assert [bound(rate) for rate in (0.0132, 0.0003, 0.0)] == [
        "1.3\u202f%", "0.03\u202f%", "0.0\u202f%",
    ]  # fmt: skip
    assert [number(value) for value in (0, 0.01234, 1234.5, float("inf"), float("nan"))] == [
        "0", "0.0123", "1,234", "infinite", "not a number",
    ]  # fmt: skip
    assert number(1.26e-6) == "1.3\u202f\u00b7\u202f10\u207b\u2076"
    assert number(-2e7) == "-2.0\u202f\u00b7\u202f10\u2077"


# The picture.


def test_scatter_line_separates_safe_from_close() -> None:
    reference = made_logits(500)
    picture = scatter_of(movements(reference, moved(reference, 0.3), SINGLE, "fp32"), allowed=None)
    assert picture is not None
    x1, y1, x2, y2 = picture.line
    for x, y, image in picture.points:
        on_the_line = y1 + (x - x1) * (y2 - y1) / (x2 - x1)
        above = y < on_the_line
        if abs(y - on_the_line) > 0.2:  # places are rounded to tenths
            assert above == (2 * image.change >= image.margin)
        if image.flipped:
            assert above or abs(y - on_the_line) <= 0.2
    assert {image.kind for _, _, image in picture.points} == {"safe", "close", "flipped"}
    margins = [image.margin for _, _, image in picture.points]
    assert margins == sorted(margins)


def test_scatter_draws_zeros_at_the_edge() -> None:
    reference = np.array([[1, 1, 0], [2, 1, 0], [3, 0, 0]], np.float32)
    candidate = np.array([[1, 1, 0.1], [2, 1, 0], [3, 0, 0.01]], np.float32)
    picture = scatter_of(movements(reference, candidate, SINGLE, "fp32"), allowed=0.002)
    assert picture is not None
    (tie_x, _, _), (_, same_y, _), _ = picture.points
    assert tie_x == 78
    assert [image.decidable for _, _, image in picture.points] == [False, True, True]
    assert same_y == 346
    assert picture.allowed is not None
    assert 12 < picture.allowed < 346


def test_scatter_of_many_images_keeps_flips_and_nearest() -> None:
    reference = made_logits(MOST_POINTS + 3000)
    images = movements(reference, moved(reference, 0.02), SINGLE, "fp32")
    picture = scatter_of(images, allowed=None)
    assert picture is not None
    drawn = {image.index for _, _, image in picture.points}
    assert len(drawn) == MOST_POINTS
    flips = {image.index for image in images if image.flipped}
    assert flips
    assert flips <= drawn
    others = sorted((each for each in images if not each.flipped), key=lambda each: each.room)
    assert {each.index for each in others[: MOST_POINTS - len(flips)]} <= drawn


# What the page does, in a browser.


def test_certificate_loads_without_complaints_or_requests(
    browser: Browser, tmp_path: Path, photos: Path
) -> None:
    path = write(
        tmp_path,
        four_photos(
            photos,
            stages=made_stages(made_logits(60), fault=True),
            layers=[made_layers(fault=True)],
        ),
    )
    for dark in (False, True):
        page = browser.open(path.as_uri(), dark=dark)
        assert page.complaints == []
        assert page.requests == [path.as_uri()]
        assert page.evaluate("[...document.images].map(i => i.naturalWidth)") == [128]
    assert text(page, ".verdict .stamp") == "FAILED"
    assert text(page, ".flips .who") == "dog/b.png dog \u2192 owl, expected dog"


def test_certificate_chart_by_keyboard(browser: Browser, tmp_path: Path) -> None:
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


def test_certificate_chart_by_pointer(browser: Browser, tmp_path: Path) -> None:
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


def test_certificate_fits_narrow_windows(browser: Browser, tmp_path: Path, photos: Path) -> None:
    long = "dog/" + "long-name-" * 20 + ".png"
    verification = four_photos(
        photos,
        paths=(PATHS[0], long, *PATHS[2:]),
        expected={long: ("dog",)},
        stages=made_stages(made_logits(60), fault=True, hint="--option-" * 20),
        layers=[made_layers(fault=True, node="node_" * 30)],
    )
    page = browser.open(write(tmp_path, verification).as_uri(), width=360)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_certificate_numbers_stay_on_one_line(browser: Browser, tmp_path: Path) -> None:
    logits = made_logits(2000, 3)
    paths = [f"{BIRDS.names[best]}/{i}.png" for i, best in enumerate(logits.argmax(1))]
    verification = made_verification(
        logits,
        {FP16: logits},
        folder=tmp_path / "none",
        paths=paths,
        expected={path: (path.split("/")[0],) for path in paths},
    )
    page = browser.open(write(tmp_path, verification).as_uri())
    lines = (
        "[...document.querySelectorAll('.tiles strong')].map(number => {"
        " const range = document.createRange(); range.selectNodeContents(number);"
        " return [range.getClientRects().length, number.scrollWidth > number.clientWidth] })"
    )
    screen = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
    for width in (360, 420, *range(680, 920, 4)):
        page.send("Emulation.setDeviceMetricsOverride", width=width, **screen)
        assert page.evaluate(lines) == [[1, False]] * 4, width


def test_certificate_print_shows_whole_tables(browser: Browser, tmp_path: Path) -> None:
    labels = Labels(names=tuple(f"class {i}" for i in range(40)), source="made")
    logits, paths = made_logits(40, 40), [f"{i}.png" for i in range(40)]
    verification = made_verification(
        logits,
        {FP32: logits},
        labels=labels,
        paths=paths,
        expected={path: (name,) for path, name in zip(paths, labels.names, strict=True)},
    )
    page = browser.open(write(tmp_path, verification, labels=labels).as_uri())
    hidden = (
        "[...document.querySelectorAll('.scroll')]"
        ".filter(box => box.scrollHeight > box.clientHeight + 1).length"
    )
    assert page.evaluate(hidden) == 1
    page.send("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate(hidden) == 0


def test_certificate_controls_and_images_have_names(
    browser: Browser, tmp_path: Path, photos: Path
) -> None:
    path = write(tmp_path, four_photos(photos, layers=[made_layers(fault=True)]))
    nodes = browser.open(path.as_uri()).send("Accessibility.getFullAXTree")["nodes"]
    wanted = {"button", "image", "link", "region", "img"}
    named = [n for n in nodes if not n["ignored"] and n["role"]["value"] in wanted]
    assert len(named) >= 6
    assert [n["role"]["value"] for n in named if not n["name"]["value"]] == []


def test_certificate_of_ten_thousand_images_is_small(browser: Browser, tmp_path: Path) -> None:
    logits = made_logits(10_000)
    verification = made_verification(logits, {FP16: moved(logits, 3e-3)}, folder=tmp_path / "none")
    path = write(tmp_path, verification)
    assert path.stat().st_size < 400_000
    page = browser.open(path.as_uri())
    assert page.complaints == []
    assert page.evaluate("document.querySelectorAll('.picture circle').length") == MOST_POINTS + 1
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


def test_certificate_escapes_hostile_names(browser: Browser, tmp_path: Path, photos: Path) -> None:
    beacon = "<img src='http://127.0.0.1:9/beacon' onerror='window.injected = 1'>"
    names = (name for name in HOSTILE if not has_control_character(name))
    labels = Labels(names=(*names, beacon), source=beacon)
    logits = made_logits(len(HOSTILE), len(labels))
    stages = made_stages(made_logits(60), fault=True, hint=HOSTILE[1] + beacon)
    verification = made_verification(
        logits,
        {FP32: np.roll(logits, 1, axis=1)},
        folder=photos,
        labels=labels,
        paths=HOSTILE,
        expected=dict.fromkeys(HOSTILE, (beacon,)),
        reference_fields={"description": HOSTILE[1] + beacon},
        versions={"python": beacon},
        stages=msgspec.structs.replace(stages, beginning=beacon),
        layers=[made_layers(fault=True, node=HOSTILE[0])],
    )
    path = write(tmp_path, verification, labels=labels, name="<b>birds")
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


def test_certificate_verdict_is_beside_candidate(tmp_path: Path) -> None:
    """What stands further to the right has to be scrolled to."""
    page = said(
        write(tmp_path, four_photos(tmp_path, -LOGITS, stages=made_stages(LOGITS, fault=True)))
    )
    assert "candidate verdict how&nbsp;it&nbsp;ran changed" in page
    assert "stage verdict change " in page


def test_certificate_names_skipped_images_and_missing_module(tmp_path: Path) -> None:
    why = "best_model.pth is not there"
    verification = four_photos(
        tmp_path, LOGITS, reference_fields={"kind": "graph", "module_reason": why}
    )
    photos = msgspec.structs.replace(verification.images, duplicates=1, calibration=2)
    page = said(write(tmp_path, replace(verification, images=photos)))
    assert "(1 duplicate and 2 calibration images skipped)" in page
    assert f"instead of the trained model: {why}" in page
    assert "exported from best_model.pth " + "c" * 64 + " not compared here" in page
    assert "checkpoint best_model.pth" not in page


def test_certificate_counts_non_finite_answers(tmp_path: Path) -> None:
    broken = LOGITS.copy()
    broken[1, 1] = np.nan
    page = said(write(tmp_path, four_photos(tmp_path, broken)))
    assert "1 of 4 photos cannot be drawn: the answers are not finite numbers" in page
