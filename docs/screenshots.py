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
SCALE = 1.2
COLORS = 72
#: What a picture may weigh: a reader waits for two.
LARGEST_BYTES = 150_000
#: What is shown of a page (the closest calls first), and the element that the picture begins at.
VIEWS = {"certificate": ("", "body"), "gallery": ("#sort=margin", "#gallery")}


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
    element = f"document.querySelector('{beginning}')"
    top = page.evaluate(f"{element}.getBoundingClientRect().top + scrollY")
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

    # The browser may write to its profile a moment longer.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = pages(demo, Path(folder))
        with open_browser(Path(folder, "profile")) as browser:
            for name, path in made.items():
                view, beginning = VIEWS[name]
                for scheme in ("light", "dark"):
                    page = browser.open(path.as_uri() + view, width=WIDTH, dark=scheme == "dark")
                    place = ROOT / "docs" / "pictures" / f"{name}-{scheme}.png"
                    place.write_bytes(photograph(page, beginning))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
