"""Photos for a search, and others for the proof of what it found."""

from collections import Counter

import pytest
from bundle_files import acknowledged, edited
from fp16_networks import BRIGHT, make_photos

from deploykit.bundle.golden import Golden, read_golden, write_golden
from deploykit.errors import ImagesError
from deploykit.proof.images import split_samples
from deploykit.system.progress import silent


def drawn(photos):
    """The names and the images of a sample."""
    names, images = [], []
    for some, batch in photos:
        names += some
        images += [image.copy() for image in batch]
    return names, images


def test_split_photos_samples_are_disjoint(exported_bundle, photo_folder):
    search, proof = split_samples(exported_bundle, photo_folder, silent, search=32, proof=32)
    searched, proven = drawn(search)[0], drawn(proof)[0]
    assert len({*searched, *proven}) == len(searched) + len(proven) == 45
    assert search.drawn().sha256 != proof.drawn().sha256
    assert search.drawn().source == proof.drawn().source == str(photo_folder)


def test_split_photos_even_over_classes(exported_bundle, photo_folder):
    for photos in split_samples(exported_bundle, photo_folder, silent, search=32, proof=32):
        counts = Counter(name.split("/")[0] for name in drawn(photos)[0])
        assert set(counts) == {"blue", "green", "red"}
        assert max(counts.values()) - min(counts.values()) <= 1


def test_split_photos_is_deterministic(exported_bundle, photo_folder):
    first, second = (
        [
            drawn(photos)[0]
            for photos in split_samples(exported_bundle, photo_folder, silent, search=32, proof=32)
        ]
        for _ in range(2)
    )
    assert first == second


def test_split_photos_of_a_large_folder(exported_bundle, tmp_path):
    folder = make_photos(tmp_path / "many", BRIGHT, count=24)
    assert [
        p.count for p in split_samples(exported_bundle, folder, silent, search=32, proof=32)
    ] == [32, 32]


@pytest.mark.parametrize(("images", "counts"), [(2, [1, 1]), (3, [1, 2])])
def test_split_photos_of_few_images(exported_bundle, tmp_path, photo_folder, images, counts):
    for i in range(images):
        data = (photo_folder / "red" / f"{i:02}.png").read_bytes()
        (tmp_path / f"{i}.png").write_bytes(data)
    assert [
        p.count for p in split_samples(exported_bundle, tmp_path, silent, search=32, proof=32)
    ] == counts


def test_split_photos_of_one_image(exported_bundle, tmp_path, photo_folder):
    (tmp_path / "a.png").write_bytes((photo_folder / "red" / "00.png").read_bytes())
    with pytest.raises(ImagesError, match="has one image; a search and its proof need two") as lone:
        split_samples(exported_bundle, tmp_path, silent, search=64, proof=128)
    assert "192 or more" in lone.value.hint


def test_split_photos_takes_images_of_the_export(exported_bundle, photo_folder):
    notes = []
    search, proof = split_samples(exported_bundle, None, notes.append, search=32, proof=32)
    assert search.count + proof.count == 45
    assert [note.message for note in notes] == [
        f"using the photos given at export: {photo_folder.resolve()}"
    ]


def test_split_photos_of_golden_images(bundle):
    notes = []
    search, proof = split_samples(
        edited(bundle, images="/gone"), None, notes.append, search=32, proof=32
    )
    (note,) = (note.message for note in notes)
    assert note.startswith("/gone, given at export, is not there: using golden.npz")
    halves = [drawn(photos)[1] for photos in (search, proof)]
    assert (search.drawn().kind, proof.drawn().kind) == ("golden", "golden")
    golden = {image.tobytes() for image in read_golden(bundle).images}
    assert {image.tobytes() for half in halves for image in half} == golden
    assert [len(half) for half in halves] == [4, 4]


def test_split_photos_of_one_golden_image(bundle):
    golden = read_golden(bundle)
    write_golden(Golden(golden.images[:1], golden.logits[:1]), bundle.folder / "golden.npz")
    changed = edited(acknowledged(bundle, "golden.npz"), images=None)
    with pytest.raises(ImagesError, match="has one image; a search") as caught:
        split_samples(changed, None, silent, search=32, proof=32)
    assert "--images" in caught.value.hint
