"""Draws the pictures of the documentation, from nothing but this file: ``python docs/pictures.py``.

A drawn bird goes through deploykit's own preprocessing, right and wrong.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from deploykit.images.preprocess import preprocess
from deploykit.parity.statistics import upper_bound
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.text import rate_digits

FOLDER = Path(__file__).parent / "pictures"
SIZE = (128, 128)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
#: Unit of the figure: a margin of 1 is this many pixels.
_SCALE = 40


def bird() -> Image.Image:
    """A bird with barred wings on a branch, 320x200, drawn four times as large and shrunk."""
    image = Image.new("RGB", (1280, 800), (150, 200, 235))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 640, 1280, 690), fill=(110, 75, 45))
    draw.polygon([(330, 470), (60, 560), (80, 610), (400, 560)], fill=(60, 60, 75))
    draw.ellipse((300, 240, 860, 640), fill=(200, 70, 40))
    draw.ellipse((680, 110, 960, 390), fill=(190, 60, 35))
    draw.polygon([(940, 220), (1090, 265), (940, 300)], fill=(240, 190, 60))
    draw.ellipse((850, 190, 895, 235), fill=(20, 20, 20))
    draw.ellipse((360, 330, 700, 560), fill=(90, 60, 60))
    for x in range(385, 690, 16):
        draw.line((x, 360, x - 20, 530), fill=(235, 225, 210), width=7)
    for x in (520, 620):
        draw.rectangle((x, 620, x + 14, 660), fill=(240, 190, 60))
    return image.resize((320, 200), Image.Resampling.BOX)


def seen(
    image: Image.Image, normalise: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
) -> Image.Image:
    """The picture that the network takes this one for, if it was trained with ImageNet's numbers.

    Args:
        image: What is decoded and resized.
        normalise: What is done to (H, W, 3) in 0..1 instead of training's normalisation.
    """
    values = normalise(np.asarray(image, np.float64) / 255) * STD + MEAN
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def pictures() -> dict[str, Image.Image]:
    """Each picture by the name of its file."""

    def resized(image: Image.Image, **changes: object) -> Image.Image:
        return Image.fromarray(preprocess(image, Preprocessing(**{"resize": SIZE, **changes})))  # type: ignore[arg-type]

    image = bird()
    stretched = resized(image)
    return {
        "bird.png": image,
        "stretched.png": stretched,
        "cropped.png": resized(image, resize=146, crop_size=SIZE),
        "bgr.png": Image.fromarray(np.asarray(stretched)[..., ::-1]),
        "turned.png": resized(image.transpose(Image.Transpose.ROTATE_90)),
        "aliased.png": resized(image, antialias=False),
        "half.png": seen(stretched, lambda x: (x - 0.5) / 0.5),
        "unnormalised.png": seen(stretched, lambda x: x),
    }


def proof() -> str:
    """The figure of docs/proof.md: the margins of 60 made images, before and after."""
    rng = np.random.default_rng(7)
    before = rng.gamma(2.2, 1.3, 60).clip(0.25, 6.8)
    before[:2] = 0.09, 0.62
    after = before + rng.normal(0, 0.13, 60)
    after[:2] = -0.06, -0.38
    dots = []
    for x, y in zip(before, after, strict=True):
        kind = "near" if x < 0.15 else "flip" if y < 0 else "kept"
        place = f'cx="{60 + x * _SCALE:.1f}" cy="{300 - y * _SCALE:.1f}"'
        dots.append(f'<circle class="{kind}" {place} r="4"/>')
    flips, decided = int(((after < 0) & (before >= 0.15)).sum()), int((before >= 0.15).sum())
    bound = rate_digits(upper_bound(flips, decided) or 0)
    return _FIGURE.format(dots="\n".join(dots), told=f"{flips} of {decided}, at most {bound} %")


_FIGURE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 460 380" font-family="sans-serif" \
font-size="13" role="img" aria-label="Margins before and after: a flip is a dot below zero">
<style>
.kept {{ fill: #00897b; fill-opacity: 0.65 }}
.flip {{ fill: #d32f2f }}
.near {{ fill: #9e9e9e }}
.ground {{ fill: #fff }}
.ink {{ fill: #222 }}
.quiet {{ fill: #555 }}
.changed {{ fill: #b71c1c }}
.axis {{ stroke: #555; fill: none }}
@media (prefers-color-scheme: dark) {{
  .kept {{ fill: #26a69a }}
  .flip {{ fill: #ff6b6b }}
  .ground {{ fill: #191c22 }}
  .ink {{ fill: #e9ebef }}
  .quiet {{ fill: #a5adba }}
  .changed {{ fill: #ff8f8f }}
  .axis {{ stroke: #a5adba }}
}}
</style>
<rect width="460" height="380" rx="8" class="ground"/>
<rect x="60" y="300" width="380" height="30" fill="#d32f2f" fill-opacity="0.1"/>
<rect x="60" y="20" width="6" height="310" fill="#9e9e9e" fill-opacity="0.25"/>
<path d="M60 20V330M60 300H440" class="axis"/>
<path d="M60 300L340 20" stroke="#bbb" stroke-dasharray="4 4" fill="none"/>
{dots}
<text x="250" y="320" class="changed">below zero: another class (flip)</text>
<text x="345" y="30" class="quiet">unchanged</text>
<text x="72" y="36" class="quiet">undecidable</text>
<text x="160" y="352" class="ink">margin in the trained model</text>
<text x="24" y="250" class="ink" transform="rotate(-90 24 250)">margin when deployed</text>
<text x="60" y="374" class="ink">flips: {told}</text>
</svg>
"""


def main() -> None:
    """Write them all."""
    for name, image in pictures().items():
        data = io.BytesIO()
        image.save(data, "png", optimize=True)
        (FOLDER / name).write_bytes(data.getvalue())
    (FOLDER / "proof.svg").write_text(proof(), encoding="utf-8")


if __name__ == "__main__":
    main()
