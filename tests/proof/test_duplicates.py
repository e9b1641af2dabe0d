"""Photos with the same pixels are one observation, whatever is told from them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from deploykit.commands.diagnose.layers.run import drawn_images
from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.commands.diagnose.stages.run import diagnose_stages
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import ImagesError
from deploykit.proof.images import ImageSample
from deploykit.proof.reference import ReferenceRequest
from deploykit.specs.preprocessing_options import PreprocessingOptions
from deploykit.system.progress import Note, silent

ORIENTATION, TURN_RIGHT = 0x0112, 6


@pytest.fixture
def copied_folder(tmp_path, photo_folder):
    """Three photos: of a red and a green one there are eight more copies each, of a blue none."""
    root = tmp_path / "copied"
    for label, copies in (("blue", 0), ("green", 8), ("red", 8)):
        (root / label).mkdir(parents=True)
        for i in range(1 + copies):
            shutil.copy(photo_folder / label / "00.png", root / label / f"{i}.png")
    return root


@pytest.fixture
def walk(network_file):
    def run(bundle, images, progress=silent, **fields):
        named = ReferenceRequest(arch=f"{network_file}:Net")
        request = DiagnosisRequest(images, runtime="onnxruntime-cpu", reference=named, **fields)
        return diagnose_stages(bundle, request, progress)

    return run


def test_photos_draw_duplicates_once():
    pixels = np.zeros((4, 2, 2, 3), np.uint8)
    pixels[[1, 2]] = 7
    photos = ImageSample(
        "photos", "birds", 4, [(["a", "b"], pixels[:2], 0), (["c", "d"], pixels[2:], 0)]
    )
    assert [name for names, _ in photos for name in names] == ["a", "b"]
    drawn = photos.drawn()
    assert (drawn.count, drawn.duplicates, photos.unreadable) == (2, 2, 0)


def test_sample_with_a_limit_stops_reading():
    def batches():
        try:
            for value in range(9):
                yield [f"{value}"], np.full((1, 2, 2, 3), value, np.uint8), 0
        finally:
            ended.append(True)

    ended = []
    sample = ImageSample("photos", "birds", 2, batches(), limit=2)
    assert [name for names, _ in sample for name in names] == ["0", "1"]
    assert ended == [True]


def test_photos_skip_calibration_images_by_pixels():
    pixels = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    first = ImageSample("photos", "birds", 1, [(["a"], pixels[:1], 0)])
    list(first)
    photos = ImageSample("photos", "birds", 3, [(["x", "y", "z"], pixels, 0)])
    photos.skip(first.digests)
    assert [name for names, _ in photos for name in names] == ["y", "z"]
    drawn = photos.drawn()
    assert (drawn.count, drawn.calibration, photos.unreadable) == (2, 1, 0)


def test_photos_of_calibration_images_alone():
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    first = ImageSample("photos", "birds", 1, [(["a"], pixels, 0)])
    list(first)
    photos = ImageSample("photos", "birds", 1, [(["a"], pixels, 0)])
    photos.skip(first.digests)
    list(photos)
    with pytest.raises(ImagesError, match="1 image had a part in making what is compared"):
        photos.drawn()


def test_verify_counts_duplicates_once(bundle, copied_folder):
    result = verify_bundle(bundle, VerifyRequest(images=copied_folder))
    assert (result.images.count, result.images.duplicates) == (3, 16)
    assert all(verdict.measurement.images == 3 for verdict in result.verdicts)


def test_labels_finding_counts_duplicates_once(
    walk, checkpoint, network_file, photo_folder, copied_folder, tmp_path
):
    """Two photos are crossed. Were their copies others, that would be no chance."""
    request = ExportRequest(
        arch=f"{network_file}:Net",
        checkpoint=checkpoint,
        classes="blue,red,green",
        preprocessing=PreprocessingOptions(input_size=(16, 16)),
        images=photo_folder,
        artifacts=tmp_path / "artifacts",
    )
    exchanged = export_bundle(request).bundle
    notes = []
    report = walk(exchanged, copied_folder, notes.append)
    assert (report.correct, report.labelled) == (1, 3)
    assert all(finding.stage not in ("labels", "accuracy") for finding in report.findings)
    told = [event.message for event in notes if isinstance(event, Note)]
    assert "skipped: 16 of 19 photos are duplicates of others" in told


def test_stages_count_duplicates_once(walk, exported_bundle, copied_folder):
    report = walk(exported_bundle, copied_folder)
    assert report.passed
    assert {step.added.images for step in report.steps if step.stage != "batch size"} == {3}


def test_stages_keep_the_duplicate_with_exif_rotation(walk, exported_bundle, tmp_path):
    """Without it, no photo would show whether training turned photos by EXIF."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for i in range(4):
        image = Image.fromarray(rng.integers(0, 255, (20, 30, 3)).astype(np.uint8))
        exif = Image.Exif()
        image.save(folder / f"{i}.png", exif=exif)
        exif[ORIENTATION] = TURN_RIGHT
        image.save(folder / f"{i} turned.png", exif=exif)
    code = tmp_path / "train.py"
    code.write_text(
        "from PIL import ImageOps\n"
        "from torchvision.transforms import v2 as t\n"
        "import torch\n"
        "transform = t.Compose([\n"
        "    ImageOps.exif_transpose, t.Resize((16, 16)), t.PILToTensor(),\n"
        "    t.ToDtype(torch.float32, scale=True),\n"
        "    t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),\n"
        "])\n",
        encoding="utf-8",
    )
    report = walk(exported_bundle, folder, transform=f"{code}:transform")
    assert "EXIF" in report.findings[0].message
    assert report.steps[0].added.images == 4


def test_stages_unreadable_share_with_duplicates(walk, exported_bundle, copied_folder):
    for i in range(10):
        (copied_folder / "blue" / f"torn {i}.png").write_bytes(b"")
    report = walk(exported_bundle, copied_folder)
    assert all("cannot be read" not in finding.message for finding in report.findings)


def test_drawn_images_are_different(bundle, copied_folder):
    first = ("red/3.png", "red/5.png")
    images = drawn_images(bundle, copied_folder, first, limit=4, progress=silent)
    assert len(images) == len({image.tobytes() for image in images}) == 3
    (named,) = drawn_images(bundle, copied_folder, first, limit=1, progress=silent)
    assert np.array_equal(images[0], named)
