"""Fixtures of the commands' tests."""

import shutil

import pytest

from deploykit.commands.app import run
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.runtime._onnxruntime import OnnxRuntimeSession
from deploykit.specs.preprocessing_options import PreprocessingOptions


@pytest.fixture(scope="session")
def embedded_bundle(tmp_path_factory, network_file, checkpoint, photo_folder):
    """Like ``exported_bundle``, with embeddings."""
    request = ExportRequest(
        arch=f"{network_file}:Net",
        checkpoint=checkpoint,
        classes=str(photo_folder),
        preprocessing=PreprocessingOptions(input_size=(16, 16)),
        name="colours",
        artifacts=tmp_path_factory.mktemp("artifacts"),
        embeddings=True,
    )
    return export_bundle(request).bundle


@pytest.fixture
def folder(tmp_path, exported_bundle):
    """A copy of the exported bundle that a test may change."""
    path = tmp_path / "artifacts" / "colours"
    shutil.copytree(exported_bundle.folder, path)
    return path


@pytest.fixture
def verify(capsys, folder):
    """Verify that bundle; gives exit code, stdout and stderr."""

    def call(*arguments):
        code = run(["verify", "--bundle", str(folder), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def answers(monkeypatch):
    """Change what a graph answers on ONNX Runtime: ``answers(graph, change)``."""
    compute = OnnxRuntimeSession._run

    def put(graph, change):
        def changed(self, images):
            logits = compute(self, images)
            return change(logits) if self.spec.graph == graph else logits

        monkeypatch.setattr(OnnxRuntimeSession, "_run", changed)

    return put
