"""The page of a prediction, in a real browser where there is one."""

from __future__ import annotations

import json
import os
import re
import threading
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from chromium import Browser, Page, open_browser
from made_proofs import PROOF
from PIL import Image

from deploykit.commands.predict.page import write_prediction_page
from deploykit.commands.predict.tally import Tally
from deploykit.errors import InputError, UsageError
from deploykit.html.thumbnails import MOST_THUMBNAILS
from deploykit.html.words import duration, percent, shares
from deploykit.proof.policy import Status
from deploykit.proof.text import proof_words
from deploykit.specs.model import Labels
from deploykit.specs.prediction import Prediction, Ranked
from deploykit.specs.session import SessionSpec
from deploykit.system.files import check_page_path

LABELS = Labels(names=("cat", "dog", "owl"), source="folder photos")
SPEC = SessionSpec(
    runtime="onnxruntime-cpu",
    graph="deploy/fp32.onnx",
    precision="fp32",
    device="CPU",
    input_size=(16, 16),
    classes=3,
)


def answer(
    path: str, label: str, margin: float, expected: str | None = None, labels: Labels = LABELS
) -> Prediction:
    others = [name for name in labels.names if name != label]
    top = (Ranked(label=label, probability=0.75), Ranked(label=others[0], probability=0.25))
    return Prediction(
        path=path, label=label, probability=0.75, margin=margin, expected=expected, top=top
    )


ROWS = (
    answer("cat/a.png", "cat", 3.0, "cat"),
    answer("cat/b.png", "dog", 0.5, "cat"),
    answer("dog/a.png", "dog", 2.0, "dog"),
    answer("dog/gone.png", "owl", 0.125, "dog"),
    Prediction(path="dog/c.png", status="truncated", reason="The file is empty.", expected="dog"),
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, colour in (("cat/a", "red"), ("cat/b", "green"), ("dog/a", "blue")):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 200), colour).save(path)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


PROVEN = Status("proven", PROOF)


def run_in(
    root: Path, status: Status = PROVEN, bundle: str = "birds", labels: Labels = LABELS
) -> SimpleNamespace:
    """A run as it is when it has ended."""
    return SimpleNamespace(
        bundle=SimpleNamespace(name=bundle, manifest=SimpleNamespace(labels=labels)),
        spec=SPEC,
        root=root,
        tally=Tally(rows=225, skipped=2, seconds=6.5),
        stage_seconds={"decode": 3.0, "resize": 1.0, "session": 5.9, "write": 0.1},
        status=status,
    )


def write(
    root: Path,
    rows: Iterable[Prediction],
    status: Status = PROVEN,
    **changes: object,
) -> Path:
    path = root.parent / "page.html"
    write_prediction_page(run_in(root, status, **changes), rows, path)
    return path


def data_of(path: Path, name: str) -> object:
    """What the page carries in one of its JSON elements."""
    html = path.read_text(encoding="utf-8")
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


def names(page: Page) -> list[str]:
    """The names on the cards that are shown."""
    return page.evaluate("[...document.querySelectorAll('.card .name')].map(n => n.textContent)")


def text(page: Page, selector: str) -> str:
    found = page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
    return squeezed(found)


def squeezed(said: str) -> str:
    """A text with one blank for each run of blanks, tabs and line ends; narrow spaces stay."""
    return re.sub(r"[ \n\t]+", " ", said).strip()


# What the page says, without a browser.


def test_page_has_facts_without_scripts(photos: Path) -> None:
    html = write(photos, ROWS).read_text(encoding="utf-8")
    said = squeezed(re.sub(r"<[^>]*>", " ", html[html.index("<header") :]))
    assert "5 image files and 2 others, skipped" in said
    assert "50.0\u202f% accuracy 2 wrong of 4 labelled" in said
    assert "1 without a prediction" in said
    assert "34.6 images/s in 6.5\u202fs" in said
    assert "session 59.0\u202f% 5.9\u202fs" in said
    assert "0 of 225 decisions changed (flipped) against the torch module" in said


def test_page_holds_rows_and_thumbnails_as_json(photos: Path) -> None:
    path = write(photos, ROWS)
    rows = data_of(path, "rows-data")
    assert rows[1] == ["cat/b.png", 0, 1, 0.75, 0.5, 1, 0.75, 0, 0.25]
    assert rows[4] == ["dog/c.png", 1, "truncated", "The file is empty."]
    thumbnails = dict(data_of(path, "thumbnails-data"))
    assert sorted(thumbnails) == [0, 1, 2, 3]
    assert thumbnails[3] is None  # its file has gone since
    assert all(thumbnails[i].startswith("/9j/") for i in (0, 1, 2))  # a JPEG's first bytes


@pytest.mark.skipif(os.name == "nt", reason="a backslash is no part of a name there")
def test_page_thumbnails_of_escaped_names(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    Image.new("RGB", (8, 8)).save(root / "\\u12ab.png")
    path = write(root, [answer("\\\\u12ab.png", "cat", 1.0), answer("\\\\plain.png", "cat", 1.0)])
    thumbnails = dict(data_of(path, "thumbnails-data"))
    assert thumbnails[0] is not None
    assert thumbnails[1] is None


def test_page_thumbnails_of_many_images(tmp_path: Path) -> None:
    count = MOST_THUMBNAILS + 1000
    margins = np.random.default_rng(0).permutation(count) + 1.0
    rows = [answer(f"{i}.png", ("cat", "dog")[i % 2], margins[i], "cat") for i in range(count)]
    by_margin = np.argsort(margins).tolist()
    rare = next(i for i in by_margin[1000:] if i % 2 == 0)
    rows[rare] = answer(f"{rare}.png", "owl", margins[rare], "owl")
    path = write(tmp_path / "photos", iter(rows))
    chosen = {index for index, _ in data_of(path, "thumbnails-data")}
    assert len(chosen) <= MOST_THUMBNAILS
    wrong = [i for i in by_margin if i % 2]
    assert {rare, *by_margin[:800], *wrong[-800:]} <= chosen
    assert f"{len(chosen):,} of 3,000 photos" in path.read_text(encoding="utf-8")


def test_page_memory_is_constant(tmp_path: Path) -> None:
    def peak_of(count: int) -> int:
        rows = (answer(f"{i}.png", "cat", float(i), "dog") for i in range(count))
        tracemalloc.start()
        write(tmp_path / "photos", rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_of(MOST_THUMBNAILS)  # imports and templates
    assert peak_of(6 * MOST_THUMBNAILS) < 1.2 * peak_of(2 * MOST_THUMBNAILS)


def test_page_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Writing .*page\.html failed"):
        write_prediction_page(run_in(photos), ROWS, tmp_path / "missing" / "page.html")
    with pytest.raises(UsageError, match="does not exist"):
        check_page_path(tmp_path / "missing" / "page.html")
    folder = tmp_path / "folder.html"
    folder.mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_page_path(folder)


def test_page_interrupted_keeps_the_old_one(photos: Path) -> None:
    path = write(photos, ROWS)
    before = path.read_bytes()

    def broken() -> Iterator[Prediction]:
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(photos, broken())
    assert path.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir()) == ["page.html", "photos"]


def test_proof_words_in_full() -> None:
    assert proof_words(PROOF) == [
        "0 of 225 decisions changed (flipped) against the torch module from the checkpoint; if "
        "your photos are like those it was proven on, at most 1.3\u202f% will, with 95\u202f% "
        "confidence.",
        "Executed in fp32 on onnxruntime-cpu, CPU; with 225 photos of bird_photos, through the "
        "recorded preprocessing.",
        "The 99th percentile of the changes of probability was 1.0e-07, largest 2.0e-06; the "
        "largest error of a logit 1.0e-06 of the scale.",
    ]
    undecided = msgspec.structs.replace(PROOF.measurement, undecidable=5, flip_rate_bound=None)
    rehearsed = msgspec.structs.replace(PROOF, kind="rehearsed", measurement=undecided)
    words = proof_words(rehearsed)
    assert words[0].startswith("0 of 220 decisions changed")
    assert words[1] == "5 more images were undecidable: either class would do."
    assert words[2].startswith("Rehearsed in fp32 on a model of the hardware")


def test_duration_percent_and_shares_in_words() -> None:
    assert [duration(s) for s in (0.03, 0.9994, 99.94, 99.95, 200, 7500)] == [
        "30\u202fms", "999\u202fms", "99.9\u202fs", "1\u202fmin 40\u202fs",
        "3\u202fmin 20\u202fs", "2\u202fh 05\u202fmin",
    ]  # fmt: skip
    assert percent(0.01323) == "1.3\u202f%"
    parts = shares({"decode": 1, "session": 3})
    assert [(part.start, part.percent) for part in parts] == [(0, 25), (25, 75)]
    assert shares({"decode": 0.0}) == []


# What the page does, in a browser.


def test_page_loads_without_complaints_or_requests(browser: Browser, photos: Path) -> None:
    path = write(photos, ROWS)
    for dark in (False, True):
        page = browser.open(path.as_uri(), dark=dark)
        assert page.complaints == []
        assert page.requests == [path.as_uri()]
        assert page.evaluate("[...document.images].filter(i => i.naturalWidth === 128).length") == 3


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        ("", ["cat/a.png", "cat/b.png", "dog/a.png", "dog/gone.png", "dog/c.png"]),
        ("filter=wrong", ["cat/b.png", "dog/gone.png"]),
        ("filter=right", ["cat/a.png", "dog/a.png"]),
        ("filter=failed", ["dog/c.png"]),
        ("filter=wrong&class=dog", ["cat/b.png"]),
        ("expected=dog", ["dog/a.png", "dog/gone.png", "dog/c.png"]),
        ("sort=margin", ["dog/gone.png", "cat/b.png", "dog/a.png", "cat/a.png", "dog/c.png"]),
        ("sort=surest&q=A.PNG", ["cat/a.png", "dog/a.png"]),
        ("status=truncated", ["dog/c.png"]),
        ("class=no+such+class", []),
        ("filter=__proto__&sort=constructor&q=gone", ["dog/gone.png"]),
    ],
)
def test_page_address_selects_a_view(
    browser: Browser, photos: Path, view: str, shown: list[str]
) -> None:
    page = browser.open(f"{write(photos, ROWS).as_uri()}#{view}")
    assert names(page) == shown
    assert page.complaints == []


def test_page_filters_change_the_address(browser: Browser, photos: Path) -> None:
    page = browser.open(write(photos, ROWS).as_uri())
    page.evaluate("document.querySelector('[name=filter][value=wrong]').click()")
    page.evaluate(
        "{ const box = document.querySelector('[name=q]'); box.value = 'b';"
        " box.dispatchEvent(new Event('input', { bubbles: true })); }"
    )
    assert names(page) == ["cat/b.png"]
    assert text(page, "#count") == "1 of 5 files"
    assert page.evaluate("location.hash") == "#filter=wrong&q=b"
    page.evaluate("document.querySelector('#controls [type=reset]').click()")
    assert len(names(page)) == 5


def test_page_confusion_matrix_links_to_images(browser: Browser, photos: Path) -> None:
    page = browser.open(write(photos, ROWS).as_uri())
    cells = "[...document.querySelectorAll('.matrix tbody tr')].map(r => r.innerText.split(/\\s+/))"
    assert page.evaluate(cells) == [
        ["cat", "1", "1", "·"],
        ["dog", "·", "1", "1"],
        ["owl", "·", "·", "·"],
    ]
    page.evaluate("document.querySelector('.matrix td.wrong a').click()")
    page.evaluate("new Promise(done => setTimeout(done, 0))")
    assert names(page) == ["cat/b.png"]


def test_page_recall_and_precision_of_each_class(browser: Browser, photos: Path) -> None:
    page = browser.open(write(photos, ROWS).as_uri())
    lines = "[...document.querySelectorAll('#class-table tbody tr')].map(r => r.innerText)"

    def table() -> list[list[str]]:
        return [line.replace("\u202f", "").split() for line in page.evaluate(lines)]

    cat, dog = ["cat", "2", "50.0%", "100.0%"], ["dog", "2", "50.0%", "50.0%"]
    owl = ["owl", "0", "\u2013", "0.0%"]
    assert table() == [cat, dog, owl]
    page.evaluate("[...document.querySelectorAll('#class-table button')].at(-1).click()")
    assert table() == [owl, dog, cat]


def test_page_lists_confusions_of_many_classes(browser: Browser, photos: Path) -> None:
    labels = Labels(names=tuple(f"class {i}" for i in range(40)), source="made")
    rows = [answer(f"{n}.png", n, 1.0, n, labels) for n in labels.names]
    rows += [answer("x.png", "class 3", 1.0, "class 7", labels)] * 2
    page = browser.open(write(photos, rows, labels=labels).as_uri())
    assert text(page, "#confusions tbody") == "class 7 class 3 2"


def test_page_without_labels_has_no_accuracy(browser: Browser, photos: Path) -> None:
    rows = [answer("a.png", "cat", 1.0), answer("b.png", "dog", 2.0), answer("c.png", "dog", 2.0)]
    page = browser.open(
        write(
            photos, rows, status=Status("unproven", None, "it is not proven: run verify")
        ).as_uri()
    )
    assert "accuracy" not in text(page, "main")
    assert text(page, "#class-table tbody") == "cat 1 dog 2"
    assert page.evaluate("document.querySelector('.matrix')") is None
    assert text(page, "#proof-heading") == "Proof unproven"
    assert page.complaints == []


def test_page_failed_files_are_listed_by_kind(browser: Browser, photos: Path) -> None:
    page = browser.open(write(photos, ROWS).as_uri())
    assert text(page, "#failure-kinds") == (
        "truncated 1 dog/c.png The file is empty. show in the gallery"
    )


def test_page_image_viewer(browser: Browser, photos: Path) -> None:
    page = browser.open(f"{write(photos, ROWS).as_uri()}#filter=wrong")
    page.evaluate("document.querySelector('.card').click()")
    assert text(page, "#photo-name") == "cat/b.png"
    assert text(page, "#photo .verdict") == "wrong: expected cat"
    assert text(page, "#photo .ranking").replace("\u202f", "") == "dog 75.0% cat 25.0%"
    link = page.evaluate("document.querySelector('#photo .original a').href")
    assert link == (photos / "cat" / "b.png").as_uri()
    page.press("ArrowRight")
    assert text(page, "#photo-name") == "dog/gone.png"
    assert text(page, "#photo .no-picture") == "cannot be shown"
    page.press("Escape")
    assert page.evaluate("document.getElementById('photo').open") is False


def test_page_links_only_usable_paths(browser: Browser, photos: Path) -> None:
    rows = [answer(name, "cat", 1.0) for name in ("/a.png", "C:/a.png", "\\udcff.png", "ö #.png")]
    page = browser.open(write(photos, rows).as_uri())
    page.evaluate("document.querySelector('.card').click()")
    linked = "!document.querySelector('#photo .original').hidden"
    for _ in range(3):
        assert page.evaluate(linked) is False
        page.press("ArrowRight")
    assert page.evaluate(linked) is True
    link = page.evaluate("document.querySelector('#photo .original a').href")
    assert link == (photos / "ö #.png").as_uri()


def test_page_theme_switch(browser: Browser, photos: Path) -> None:
    page = browser.open(write(photos, ROWS).as_uri(), dark=True)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.evaluate("document.getElementById('theme').click()")
    assert text(page, "#theme") == "Theme: Light"
    light = page.evaluate(ground)
    page.evaluate("document.getElementById('theme').click()")
    assert (text(page, "#theme"), page.evaluate(ground)) == ("Theme: Dark", dark)
    assert dark != light


def test_page_fits_narrow_windows(browser: Browser, photos: Path) -> None:
    long = "dog/" + "long-name-" * 20 + ".png"
    rows = [*ROWS, answer(long, "dog", 1.0, "dog"), Prediction(path=long, status="corrupt")]
    page = browser.open(write(photos, rows).as_uri(), width=360)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_page_controls_and_images_have_names(browser: Browser, photos: Path) -> None:
    page = browser.open(write(photos, ROWS).as_uri())
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"] in {"button", "combobox", "image", "link", "radio", "searchbox"}
        and not node["name"]["value"]
    ]
    assert nameless == []


# Names that strangers chose.

HOSTILE = (
    "<script>window.injected = 1</script>.png",
    "</script><script>window.injected = 1</script>.png",
    "<!--<script>.png",
    "\"onmouseover='window.injected = 1' x=\".png",
    "<img src=x onerror='window.injected = 1'>.png",
    "{{ 7 * 7 }}{% raw %}.png",
    "javascript:window.injected = 1",
    "new\nline\u2028.png",
    "\u202egnp.exe",
    "half \udcff pair.png",
    "鸟/图 片&amp;#?%2e.png",
    "__proto__",
)


def class_name(text: str) -> str:
    """A text as the name of a class, in which no control character is allowed."""
    return text.encode("utf-8", "replace").decode().replace("\n", " ").replace("\u2028", " ")


@pytest.fixture
def visited() -> Iterator[tuple[str, list[str]]]:
    """A server, and the paths that it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()
        thread.join()


def test_page_escapes_hostile_names(
    browser: Browser, photos: Path, visited: tuple[str, list[str]]
) -> None:
    address, paths = visited
    beacon = f"<img src='{address}/beacon'>"
    labels = Labels(names=(*map(class_name, HOSTILE), beacon), source=beacon)
    rows = [answer(name, class_name(name), 1.0, beacon, labels) for name in HOSTILE]
    rows += [Prediction(path=name, status="corrupt", reason=name + beacon) for name in HOSTILE]
    path = write(photos / beacon.replace("/", ":"), rows, labels=labels, bundle=HOSTILE[1] + beacon)
    page = browser.open(path.as_uri())
    page.evaluate("document.querySelector('.card').click()")
    for _ in rows:
        page.press("ArrowRight")
    assert page.complaints == []
    assert page.evaluate("window.injected") is None
    assert page.evaluate("[...document.images].every(i => /^(data:|$)/.test(i.src))")
    links = page.evaluate("[...document.links].map(a => a.protocol)")
    assert set(links) == {"file:"}
    assert paths == []
    shown = names(page)
    assert shown[0] == HOSTILE[0]
    assert "new\\u000aline\\u2028.png" in shown
    assert "\\u202egnp.exe" in shown


def test_page_with_hostile_texts_has_no_other_elements(photos: Path) -> None:
    """Without a browser: whatever the texts, the page has the same elements and attributes."""

    class Elements(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[tuple[str, list[str]]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, [name for name, _ in attrs]))

        def unknown_decl(self, data: str) -> None:
            self.found.append(("declaration", [data]))

        handle_comment = unknown_decl

    def elements(texts: Sequence[str]) -> list[tuple[str, list[str]]]:
        joined = "".join(texts)
        labels = Labels(names=tuple(map(class_name, texts)), source=joined)
        rows = [answer(text, class_name(text), 1.0, class_name(text), labels) for text in texts]
        rows += [Prediction(path=text, status="corrupt", reason=text) for text in texts]
        path = write(photos / joined.replace("/", ":"), rows, labels=labels, bundle=joined)
        parser = Elements()
        parser.feed(path.read_text(encoding="utf-8"))
        parser.close()
        return parser.found

    plain = elements([f"plain {i}" for i in range(len(HOSTILE))])
    assert len(plain) > 50
    assert elements(HOSTILE) == plain


def test_page_content_policy_blocks_injections(
    browser: Browser, photos: Path, visited: tuple[str, list[str]]
) -> None:
    address, paths = visited
    path = write(photos, ROWS)
    slipped = f"<img src='{address}/beacon'><script>window.injected = 1</script>"
    html = path.read_text(encoding="utf-8").replace("<main>", f"<main>{slipped}")
    path.write_text(html, encoding="utf-8", newline="\n")
    page = browser.open(path.as_uri())
    assert page.evaluate("window.injected") is None
    assert paths == []
    assert page.complaints
    with pytest.raises(AssertionError, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<p>'")

    unguarded = re.sub(r"<meta http-equiv=[^>]*>", "", html)
    path.write_text(unguarded, encoding="utf-8", newline="\n")
    page = browser.open(path.as_uri())
    assert page.evaluate("window.injected") == 1
    assert paths == ["/beacon"]


def test_page_of_ten_thousand_images(browser: Browser, photos: Path) -> None:
    count = 10_000
    rows = (answer(f"cat/{i:05}.png", "cat", count - i, "cat") for i in range(count))
    page = browser.open(write(photos, rows).as_uri())
    assert page.complaints == []
    # Not all of them have thumbnails, so those come first that do: the lowest margins.
    assert names(page)[:2] == ["cat/09999.png", "cat/09998.png"]
    assert len(names(page)) == 60
    assert text(page, "#page-number") == "Page 1 of 167"
    page.evaluate("document.querySelector('#pager [name=next]').click()")
    assert names(page)[0] == "cat/09939.png"
    page.evaluate("location.hash = 'sort=name&page=167'")
    page.evaluate("new Promise(done => setTimeout(done, 0))")
    assert names(page)[-1] == "cat/09999.png"
    assert text(page, "#page-number") == "Page 167 of 167"
