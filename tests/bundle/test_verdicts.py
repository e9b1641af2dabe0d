"""Which of two verdicts a bundle keeps."""

import msgspec
import pytest
from made_proofs import PROOF


def made(count, *, passed=True, version="1.31", **fields):
    """A verdict on so many photos."""
    changes = {
        "among": count,
        "images": msgspec.structs.replace(PROOF.images, count=count),
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


def test_kept_verdict_on_equal_images_is_the_last(kept):
    first, second = made(45), made(45, created="2026-11-23T00:00:00+00:00")
    assert kept(first, second) == (second,)


def test_kept_verdict_passed_on_fewer_images_is_dropped(kept):
    many = made(225)
    assert kept(many, made(224)) == (many,)
    failed = made(225, passed=False)
    assert kept(failed, made(224)) == (failed,)


def test_kept_verdict_failed_removes_the_proof(kept):
    failed = made(3, passed=False)
    assert kept(made(225), failed) == (failed,)


def test_kept_verdict_failed_on_more_images_stays(kept):
    worse = made(225, passed=False)
    assert kept(worse, made(3, passed=False)) == (worse,)


def test_kept_verdict_by_margin_counts_all_ranked_images(kept):
    failed = made(32, passed=False, among=10_000)
    assert kept(failed, made(225)) == (failed,)
    enough = made(10_000)
    assert kept(failed, enough) == (enough,)


def test_kept_verdict_prefers_photos_to_generated_images(kept):
    generated = made(24, images=msgspec.structs.replace(PROOF.images, kind="generated", count=24))
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
def test_kept_verdict_of_another_key_stays(kept, other):
    first, second = made(225), made(3, passed=False, **other)
    assert kept(first, second) == (first, second)
