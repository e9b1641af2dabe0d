"""What a proof shows, and which of two stays."""

import msgspec
import pytest

from deploykit.bundle.proofs import ENOUGH_PHOTOS, MOST_UNSEEN_FLIPS, unseen_bound
from deploykit.parity.statistics import upper_bound


@pytest.fixture
def made(exported_bundle):
    """Make a proof of INT8 on so many different photos, all decidable."""
    (proof,) = (p for p in exported_bundle.manifest.proofs if p.graph == "deploy/fp32.onnx")

    def make(images, *, searched=0, flips=0, undecidable=0, version="1.31", **fields):
        measurement = msgspec.structs.replace(
            proof.measurement,
            images=images,
            copies=0,
            flips=flips,
            undecidable=undecidable,
            flip_rate_bound=upper_bound(flips, images - undecidable),
        )
        photos = msgspec.structs.replace(proof.photos, kind="photos", images=images)
        made = msgspec.structs.replace(
            proof,
            precision="int8",
            photos=photos,
            measurement=measurement,
            searched=searched,
            versions={"onnxruntime": version},
        )
        return msgspec.structs.replace(made, **fields)

    return make


def test_enough_photos_are_just_enough():
    assert upper_bound(0, ENOUGH_PHOTOS) <= MOST_UNSEEN_FLIPS < upper_bound(0, ENOUGH_PHOTOS - 1)


@pytest.mark.parametrize(
    ("images", "searched", "vague"),
    [(28, 0, True), (29, 0, False), (45, 45, True), (73, 45, True), (74, 45, False)],
)
def test_only_photos_that_made_no_graph_are_evidence(made, images, searched, vague):
    proof = made(images, searched=searched)
    assert proof.is_vague == vague
    assert proof.decides != vague
    assert proof.flip_rate_bound == upper_bound(0, images - searched)


def test_every_photo_of_the_search_is_taken_for_decidable(made):
    assert not made(60, searched=20, undecidable=11).is_vague
    assert made(60, searched=20, undecidable=12).is_vague


def test_every_flip_is_taken_for_one_of_a_photo_of_no_search(made):
    found = made(100, flips=3).measurement
    assert unseen_bound(found, 0) == found.flip_rate_bound
    assert unseen_bound(found, 40) == upper_bound(3, 60)
    assert unseen_bound(found, 98) == 1.0  # of two that are left, two
    assert unseen_bound(found, 100) is None


@pytest.mark.parametrize("kind", ["golden", "generated"])
def test_images_that_are_no_sample_decide_nothing(made, kind):
    proof = made(100)
    photos = msgspec.structs.replace(proof.photos, kind=kind)
    assert msgspec.structs.replace(proof, photos=photos).is_vague


def test_a_flip_does_not_decide_and_fp32_needs_no_number_of_photos(made):
    assert not made(200, flips=1).decides
    assert made(2, precision="fp32").decides
    assert not made(2, precision="fp32", reference_kind="golden").decides


def test_by_the_same_version_photos_of_a_search_replace_no_proof_without(made):
    clean = made(29)
    assert clean.shows_more_than(made(300, searched=45))
    assert not made(28).shows_more_than(made(300, searched=45))  # which decided nothing
    assert made(28).shows_more_than(made(60, searched=45))  # as little as it does
    assert made(300, searched=45).shows_more_than(made(299, searched=45))


def test_by_another_version_enough_photos_of_no_search_replace_it(made):
    old = made(90, version="1.30")
    assert not old.shows_more_than(made(225, searched=45))
    assert not old.shows_more_than(made(29))
    assert old.shows_more_than(made(73, searched=45))
    assert old.shows_more_than(made(28))
    graph = made(90, version="1.30", reference_kind="module")
    assert not graph.shows_more_than(made(29, reference_kind="graph"))
