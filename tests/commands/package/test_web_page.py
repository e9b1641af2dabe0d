"""The page in a real browser where there is one, with the real onnxruntime-web where npm has it."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import re
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Browser, Page, open_browser
from PIL import Image, PngImagePlugin

import deploykit
from deploykit.bundle.folder import Bundle
from deploykit.commands.package.request import PackageRequest
from deploykit.commands.package.run import package_bundle
from deploykit.errors import MissingError
from deploykit.images.decode import decode_rgb
from deploykit.images.preprocess import preprocess

ISOLATING = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
ORIENTATION = 0x0112
#: The page's decoder and resize on a file beside it: the pixels in base64, and whether opaque.
PIXELS = """(async () => {
  const { decode, preprocess } = await import("./pixels.js");
  const decoded = await decode(new Uint8Array(await (await fetch(%s)).arrayBuffer()));
  const settings = JSON.parse(document.getElementById("settings").textContent);
  const pixels = preprocess(decoded, settings.preprocessing);
  return [btoa(String.fromCharCode(...pixels)), decoded.opaque];
})()"""


class Server(SimpleHTTPRequestHandler):
    """Python's own server of files, with further headers, and silent."""

    def __init__(self, *arguments: Any, headers: dict[str, str], **options: Any) -> None:
        self.more_headers = headers
        super().__init__(*arguments, **options)

    def end_headers(self) -> None:
        for name, value in self.more_headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """Serve a folder to this machine; gives the address."""
    handler = functools.partial(Server, directory=str(folder), headers=headers or {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, exported_bundle: Bundle
) -> Path:
    """The packaged page; the browser comes first, so that nothing is fetched without one."""
    output = tmp_path_factory.mktemp("web") / "page"
    try:
        package_bundle(exported_bundle, PackageRequest(format="web", output=output))
    except MissingError as exc:
        pytest.skip(f"no onnxruntime-web: {exc.message}")
    return output


def wait_until(done: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def opened(browser: Browser, url: str) -> Page:
    """The page once it has judged the recorded images."""
    page = browser.open(url)
    wait_until(lambda: text(page, "#parity .stamp").lower() in ("passed", "failed"))
    return page


def text(page: Page, selector: str) -> str:
    return str(page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))


def give(page: Page, *files: Path) -> None:
    """Choose photos, and wait until each has an answer or a problem."""
    root = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", nodeId=root, selector="#drop input")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])
    count = (
        "document.querySelectorAll('.answer').length + !document.getElementById('problem').hidden"
    )
    wait_until(lambda: page.evaluate(count) >= len(files))


def test_page_answers_the_recorded_images(browser: Browser, site: Path) -> None:
    with served(site) as url:
        page = opened(browser, url)
        assert text(page, "#parity .stamp").lower() == "passed"
        said = text(page, "#parity")
        assert "8 of 8 recorded images decided the same in this browser" in said
        assert re.search(
            r"The largest difference of a logit is [\d. ·⁰¹²³⁴-⁹⁻\u202f]+ of the scale", said
        )
        assert page.evaluate("document.querySelectorAll('#recorded .badge.good').length") == 8
        assert text(page, "#threads").startswith("1 thread: the server does not isolate")
        assert page.evaluate("document.querySelector('#drop input').disabled") is False
        assert not page.complaints
        assert {each[: len(url)] for each in page.requests} == {url}


def test_page_computes_in_threads_where_it_is_isolated(browser: Browser, site: Path) -> None:
    with served(site, ISOLATING) as url:
        page = opened(browser, url)
        assert text(page, "#parity .stamp").lower() == "passed"
        threads = min(page.evaluate("navigator.hardwareConcurrency"), 8)
        assert text(page, "#threads") == f"{threads} thread{'s' * (threads > 1)}"
        assert not page.complaints


def made_photos(folder: Path) -> dict[str, int]:
    """Files of many kinds, and by how many grey levels a browser may differ from Pillow."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (6, 5, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    photo = Image.fromarray(smooth)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", struct.pack(">I", 100_000))
    clear = photo.convert("RGBA")
    clear.putalpha(128)
    for name, image, options in (
        ("plain.png", photo, {}),
        ("gamma.png", photo, {"pnginfo": gamma}),
        ("turned.png", photo, {"exif": turned}),
        ("grey.png", photo.convert("L"), {}),
        ("palette.png", photo.quantize(16), {}),
        ("frame.gif", photo.quantize(16), {}),
        ("lossless.webp", photo, {"lossless": True, "exif": turned}),
        ("clear.png", clear, {}),
        ("plain.jpg", photo, {"quality": 85}),
        ("turned.jpg", photo, {"exif": turned}),
        ("grey.jpg", photo.convert("L"), {}),
    ):
        image.save(folder / name, **options)
    # Of half transparent pixels a canvas keeps 7 bits.
    return {
        path.name: 1 if path.stem == "clear" or path.suffix == ".jpg" else 0
        for path in folder.iterdir()
    }


def test_page_pixels_are_deploykits(
    browser: Browser, site: Path, exported_bundle: Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "page"
    shutil.copytree(site, copy)
    (copy / "photos").mkdir()
    levels = made_photos(copy / "photos")
    steps = exported_bundle.manifest.preprocessing
    with served(copy) as url:
        page = opened(browser, url)
        for name, most in levels.items():
            encoded, opaque = page.evaluate(PIXELS % json.dumps(f"photos/{name}"))
            found = np.frombuffer(base64.b64decode(encoded), np.uint8)
            wanted = preprocess(decode_rgb(copy / "photos" / name), steps).reshape(-1)
            difference = np.abs(found.astype(int) - wanted).max()
            assert difference <= most, name
            assert opaque is (name != "clear.png")


def test_page_answers_photos_as_predict(
    browser: Browser, site: Path, exported_bundle: Bundle, photo_folder: Path, tmp_path: Path
) -> None:
    photos = sorted(photo_folder.rglob("00.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(photos[0].read_bytes()[:30])
    with served(site) as url, deploykit.load(exported_bundle) as model:
        page = opened(browser, url)
        for photo in photos:
            give(page, photo)
            answer = model(photo)
            assert text(page, ".answer h3") == answer.label
            shown = text(page, ".answer .given").split("\n")[-1]
            assert shown == f"{100 * answer.probability:.1f}\u202f%"
            page.evaluate("document.getElementById('answers').replaceChildren()")
        give(page, broken, photos[0])
        assert text(page, "#problem").startswith("broken.png: this browser cannot read it")
        assert not page.complaints


def test_page_takes_no_photos_where_answers_are_others(
    browser: Browser, site: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "page"
    shutil.copytree(site, copy)
    logits = np.fromfile(copy / "golden" / "logits.bin", "<f4").reshape(8, -1)
    logits[0] = -logits[0]
    logits.tofile(copy / "golden" / "logits.bin")
    with served(copy) as url:
        page = opened(browser, url)
        assert text(page, "#parity .stamp").lower() == "failed"
        assert "7 of 8 recorded images decided the same" in text(page, "#parity")
        assert "so this page takes no photos" in text(page, "#parity")
        assert page.evaluate("document.querySelector('#drop input').disabled") is True


def test_page_tells_what_is_missing(browser: Browser, site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "page"
    shutil.copytree(site, copy)
    (copy / "model.onnx").unlink()
    with served(copy) as url:
        page = opened(browser, url)
        assert "The server answers 404 to model.onnx" in text(page, "#parity")
