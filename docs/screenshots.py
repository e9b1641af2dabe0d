"""Photographs the README's pages with Chromium: ``python docs/screenshots.py DEMO``.

DEMO is the folder that ``deploykit demo`` made: its photos come with scikit-image. Both pages are
made anew, and each is taken in light and dark.
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
#: CSS pixels of what is shown; a page is laid out for this width.
WIDTH, HEIGHT = 760, 640
SCALE = 1.25
COLORS = 128
#: What a picture may weigh: a reader waits for two.
LARGEST_BYTES = 150_000
#: Where on a page the picture begins: at its top, or at an element.
BEGINNINGS = {"certificate": "body", "gallery": "#gallery"}


def pages(demo: Path, folder: Path) -> dict[str, Path]:
    """The certificate and the gallery of the demo's test photos."""
    photos, home = str(demo / "photos" / "test"), ("--artifacts", str(demo / "artifacts"))
    certificate, gallery = folder / "certificate.html", folder / "gallery.html"
    for command in (
        ("verify", "--images", photos, "--html", str(certificate), *home),
        ("predict", photos, "--output", str(folder / "rows.csv"), "--html", str(gallery), *home),
    ):
        line = [sys.executable, "-m", "deploykit", *command]
        subprocess.run(line, check=True)  # noqa: S603 - our own program
    return {"certificate": certificate, "gallery": gallery}


def photograph(page: Any, beginning: str) -> bytes:
    """The part of an open page from an element on, as a PNG of few colours.

    Raises:
        ValueError: It is too large.
    """
    top = page.evaluate(f"document.querySelector('{beginning}').getBoundingClientRect().top")
    clip = {"x": 0, "y": max(top - 16, 0), "width": WIDTH, "height": HEIGHT, "scale": SCALE}
    taken = page.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
    data = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(taken))) as image:
        image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(
            data, "png", optimize=True
        )
    if (size := len(data.getvalue())) > LARGEST_BYTES:
        raise ValueError(f"The picture has {size:,} bytes, more than {LARGEST_BYTES:,}.")
    return data.getvalue()


def main(demo: Path) -> None:
    """Take all four."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from chromium import open_browser

    with tempfile.TemporaryDirectory() as folder:
        made = pages(demo, Path(folder))
        with open_browser(Path(folder, "profile")) as browser:
            for name, path in made.items():
                for scheme in ("light", "dark"):
                    page = browser.open(path.as_uri(), width=WIDTH, dark=scheme == "dark")
                    place = ROOT / "docs" / "pictures" / f"{name}-{scheme}.png"
                    place.write_bytes(photograph(page, BEGINNINGS[name]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
