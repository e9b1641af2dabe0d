"""Photographs the README's pages with Chromium: ``python docs/screenshots.py DEMO``.

DEMO is the folder that ``deploykit demo`` made: its photos come with scikit-image. Both pages are
made anew, each is taken in light and dark, and nothing is asked from a server.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: CSS pixels of what is shown; a page is laid out for this width.
WIDTH, HEIGHT = 720, 640
SCALE = 1.25
COLORS = 128
#: What a picture may weigh: a reader waits for four.
LARGEST_BYTES = 150_000
#: Chromium's numbers for ``prefers-color-scheme``.
SCHEMES = {"light": 1, "dark": 0}


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


def photograph(page: Path, scheme: str, place: Path, profile: Path) -> None:
    """Write the top of a page as a PNG of few colours.

    Raises:
        RuntimeError: There is no Chromium, or the picture is too large.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError(f"None of {', '.join(BROWSERS)} is on the path.")
    taken = profile / "taken.png"
    flags = (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        f"--user-data-dir={profile}",
        f"--window-size={WIDTH},{HEIGHT}",
        f"--force-device-scale-factor={SCALE}",
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        "--virtual-time-budget=3000",
        f"--screenshot={taken}",
    )
    line = [browser, *flags, page.resolve().as_uri()]
    subprocess.run(line, check=True, capture_output=True, timeout=120)  # noqa: S603 - of our page
    with Image.open(taken) as image:
        few = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    few.save(place, optimize=True)
    if (size := place.stat().st_size) > LARGEST_BYTES:
        raise RuntimeError(f"{place} has {size:,} bytes, more than {LARGEST_BYTES:,}.")


def main(demo: Path) -> None:
    """Take all four."""
    with tempfile.TemporaryDirectory() as folder:
        for name, page in pages(demo, Path(folder)).items():
            for scheme in SCHEMES:
                profile = Path(folder, f"{name}-{scheme}")
                profile.mkdir()
                photograph(page, scheme, FOLDER / f"{name}-{scheme}.png", profile)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
