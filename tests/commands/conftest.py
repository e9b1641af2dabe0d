"""Fixtures of the commands' tests."""

import shutil

import pytest

from deploykit.commands.app import run
from deploykit.runtime._onnxruntime import OnnxRuntimeSession


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
