"""What broke its tolerance once is not brought back by photos that do not show it."""

import shutil

import msgspec
import numpy as np
import pytest
from bundle_files import edited
from fp16_networks import BRIGHT, make_photos

from deploykit.bundle.folder import open_bundle
from deploykit.commands.inspect.run import inspect_bundle
from deploykit.commands.inspect.text import inspection_text
from deploykit.commands.verify.run import VerifyRequest, verify_bundle
from deploykit.inference.candidates import Candidate
from deploykit.proof.policy import decisive_proofs, why_unproven
from deploykit.runtime.fake import FakeSession
from deploykit.system.versions import runtime_version

FP32 = "deploy/fp32.onnx"
BF16 = Candidate(FP32, "openvino", "bf16")


class Treacherous(FakeSession):
    """Says that it is OpenVINO in BF16, and turns the answers to bright photos around."""

    def __init__(self, graph, *, mended):
        def answer(images):
            logits = graph.run(images)
            bright = (images.max(axis=(1, 2, 3)) > 225) & (not mended)
            return np.where(bright[:, None], -logits, logits).astype(np.float32)

        super().__init__(answer, classes=3, input_size=(16, 16))
        self._spec = msgspec.structs.replace(
            self._spec, runtime="openvino", precision="bf16", graph=FP32, device="CPU (avx512_bf16)"
        )


@pytest.fixture
def verified(bundle, monkeypatch):
    """Compare the treacherous runtime on photos; gives the verdict and the bundle after it."""
    from deploykit.inference.sessions import open_bundle_graph

    graph = open_bundle_graph(bundle, FP32, runtime="onnxruntime-cpu", precision="fp32")

    def verify(folder, *, mended=False):
        session = Treacherous(graph, mended=mended)
        monkeypatch.setattr(
            "deploykit.inference.candidates.open_bundle_graph", lambda *a, **k: session
        )
        request = VerifyRequest(runtime="openvino", precision="bf16", images=folder)
        (verdict,) = verify_bundle(open_bundle(bundle.folder), request).verdicts
        return verdict, open_bundle(bundle.folder)

    return verify


@pytest.fixture
def easy(tmp_path):
    return make_photos(tmp_path / "easy", BRIGHT - 20)


@pytest.fixture
def mixed(tmp_path, easy):
    """Those and one on which it fails."""
    folder = shutil.copytree(easy, tmp_path / "mixed")
    bright = make_photos(tmp_path / "bright", BRIGHT, count=1)
    shutil.copy(bright / "red" / "00.png", folder / "red" / "bright.png")
    return folder


def test_easy_photos_prove_it_as_long_as_nobody_knows_better(verified, easy):
    verdict, bundle = verified(easy)
    assert verdict.passed
    assert len(decisive_proofs(bundle, BF16)) == 1
    assert bundle.manifest.refutations == ()


def test_what_failed_is_remembered_with_the_photos_that_broke_it(verified, mixed):
    verdict, bundle = verified(mixed)
    assert verdict.broken
    (known,) = bundle.manifest.refutations
    assert (known.graph, known.runtime, known.precision) == (FP32, "openvino", "bf16")
    assert (known.photos.images, len(known.failed)) == (31, 1)
    assert "1 of 31 images changed their class" in known.objections[0]
    assert why_unproven(bundle, BF16).startswith(f"it failed on 31 photos of {mixed} on ")
    text = inspection_text(inspect_bundle(bundle))
    assert "FAILED         deploy/fp32.onnx in bf16 on openvino, CPU (avx512_bf16): it fail" in text


def test_easy_photos_do_not_bring_it_back(verified, easy, mixed):
    verified(mixed)
    verdict, bundle = verified(easy)
    assert (verdict.passed, verdict.broken) == (False, False)
    (objection,) = verdict.objections
    assert objection.startswith(f"it failed on 31 photos of {mixed} on ")
    assert objection.endswith("and these photos are without those")
    assert not [proof for proof in bundle.manifest.proofs if proof.runtime == "openvino"]
    assert len(bundle.manifest.refutations) == 1


def test_what_passes_on_those_photos_too_is_proven_again(verified, easy, mixed):
    verified(mixed)
    verdict, bundle = verified(mixed, mended=True)
    assert verdict.passed
    assert bundle.manifest.refutations == ()
    (proof,) = decisive_proofs(bundle, BF16)
    assert proof.photos.images == 31
    assert verified(easy)[0].passed


def test_another_version_of_the_runtime_is_asked_anew(verified, easy, mixed):
    _, bundle = verified(mixed)
    (known,) = bundle.manifest.refutations
    edited(bundle, refutations=(msgspec.structs.replace(known, runtime_version="0.1"),))
    verdict, bundle = verified(easy)
    assert verdict.passed
    assert bundle.manifest.refutations == ()
    assert len(decisive_proofs(bundle, BF16)) == 1


def test_another_graph_is_asked_anew(verified, easy, mixed):
    _, bundle = verified(mixed)
    (known,) = bundle.manifest.refutations
    edited(bundle, refutations=(msgspec.structs.replace(known, graph_sha256="0" * 64),))
    assert verified(easy)[0].passed


def test_a_proof_that_a_refutation_speaks_against_decides_nothing(verified, easy, mixed):
    _, proven = verified(easy)
    (proof,) = decisive_proofs(proven, BF16)
    assert proof.runtime_version == runtime_version("openvino", proof.versions)
    _, refuted = verified(mixed)
    again = edited(refuted, proofs=(*refuted.manifest.proofs, proof))  # as quantize makes it anew
    assert decisive_proofs(again, BF16) == []
