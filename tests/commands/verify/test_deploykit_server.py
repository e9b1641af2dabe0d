"""``verify --server`` against ``deploykit serve`` itself."""

from __future__ import annotations

import pytest
from serving import served

import deploykit
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle

pytest.importorskip("tritonclient.http")
pytest.importorskip("uvicorn")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few timed requests, and nobody who balances the load."""
    monkeypatch.setattr("deploykit.commands.verify.server._REQUESTS", 4)
    monkeypatch.setattr("deploykit.commands.serve.process._NOTICE_SECONDS", 0.0)
    monkeypatch.delenv("DEPLOYKIT_SERVER_KEY", raising=False)


def verified(bundle, server, folder):
    request = VerifyRequest(server=f"http://127.0.0.1:{server.port}", images=folder)
    return verify_bundle(bundle, request)


def test_serve_passes_as_pixels_and_as_files(exported_bundle, photo_folder):
    with served(exported_bundle) as server:
        found = verified(exported_bundle, server, photo_folder)
    assert found.passed
    assert [each.candidate.graph for each in found.verdicts] == ["colours/images", "colours/image"]
    assert {each.measurement.images for each in found.verdicts} == {45}
    assert max(each.measurement.max_relative_error for each in found.verdicts) < 1e-5
    assert server.summary.unanswered == 0


def test_serve_with_a_wrong_mean_fails(
    exported_bundle, network_file, checkpoint, photo_folder, tmp_path
):
    right = exported_bundle.manifest
    wrong = deploykit.export(
        f"{network_file}:Net",
        str(checkpoint),
        classes=[*right.labels.names],
        images=photo_folder,
        input_size=16,
        mean=(0.445, *right.preprocessing.mean[1:]),  # ten grey levels in red
        std=right.preprocessing.std,
        artifacts=tmp_path,
        name="colours",
    )
    assert wrong.manifest.preprocessing.mean != right.preprocessing.mean
    with served(wrong) as server:
        found = verified(exported_bundle, server, photo_folder)
    assert [each.failed for each in found.verdicts] == [True, True]
    assert all("largest logit error" in " ".join(each.reasons) for each in found.verdicts)
