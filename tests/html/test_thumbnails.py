"""Small pictures, made on threads."""

import io

from PIL import Image

from deploykit.html.thumbnails import make_thumbnails
from deploykit.system.progress import Step


def test_make_thumbnails_in_order_with_progress(tmp_path):
    for i in range(12):
        Image.new("RGB", (600, 300), (20 * i, 0, 0)).save(tmp_path / f"{i:02}.jpg")
    (tmp_path / "05.jpg").write_bytes(b"no image")
    photos = [(10 * i, f"{i:02}.jpg") for i in range(12)]
    steps = []
    made = list(make_thumbnails(photos, tmp_path, steps.append))
    assert [place for place, _ in made] == [place for place, _ in photos]
    assert [place for place, jpeg in made if jpeg is None] == [50]
    assert steps == [Step("making thumbnails", i, 12, unit="images") for i in range(1, 13)]
    with Image.open(io.BytesIO(made[11][1])) as thumbnail:
        assert thumbnail.size == (128, 64)
        red, green, _ = thumbnail.getpixel((64, 32))
    assert abs(red - 220) < 5
    assert green < 5
