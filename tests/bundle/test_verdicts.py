"""Which of two verdicts a bundle keeps."""

import msgspec
import pytest
from made_proofs import PROOF


def made(images, *, passed=True, version="1.31", **fields):
    """A verdict on so many photos."""
    changes = {
        "among": images,
        "photos": msgspec.structs.replace(PROOF.photos, images=images),
        "versions": {"onnxruntime": version},
        "reasons": () if passed else ("2 of 45 images changed their class",),
    }
    return msgspec.structs.replace(PROOF, **(changes | fields))


@pytest.fixture
def kept(exported_bundle):
    """What a manifest keeps of verdicts that come one after the other."""

    def keep(*verdicts):
        manifest = msgspec.structs.replace(exported_bundle.manifest, verdicts=())
        for verdict in verdicts:
            manifest = manifest.with_verdict(verdict)
        return manifest.verdicts

    return keep


def test_kept_verdict_last_on_as_many_images_wins(kept):
    first, second = made(45), made(45, created="2026-11-23T00:00:00+00:00")
    assert kept(first, second) == (second,)


def test_kept_verdict_passed_on_fewer_images_is_not_kept(kept):
    many = made(225)
    assert kept(many, made(224)) == (many,)
    failed = made(225, passed=False)
    assert kept(failed, made(224)) == (failed,)


def test_kept_verdict_failed_takes_the_proof_away_on_any_number_of_images(kept):
    failed = made(3, passed=False)
    assert kept(made(225), failed) == (failed,)


def test_kept_verdict_failed_on_fewer_images_does_not_hide_one_on_more(kept):
    worse = made(225, passed=False)
    assert kept(worse, made(3, passed=False)) == (worse,)


def test_kept_verdict_chosen_by_margin_speaks_for_all_ranked_images(kept):
    failed = made(32, passed=False, among=10_000)
    assert kept(failed, made(225)) == (failed,)
    enough = made(10_000)
    assert kept(failed, enough) == (enough,)


def test_kept_verdict_photos_outweigh_generated_images(kept):
    generated = made(24, photos=msgspec.structs.replace(PROOF.photos, kind="generated", images=24))
    photos = made(5)
    assert kept(generated, photos) == (photos,)
    assert kept(photos, generated) == (photos,)


@pytest.mark.parametrize(
    "other",
    [
        {"version": "1.30"},
        {"device": "CPU (other)"},
        {"precision": "int8"},
        {"runtime": "openvino"},
        {"graph_sha256": "1" * 64},
        {"reference_kind": "golden"},
    ],
)
def test_kept_verdict_of_another_thing_stays(kept, other):
    first, second = made(225), made(3, passed=False, **other)
    assert kept(first, second) == (first, second)
