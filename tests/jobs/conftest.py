"""Fixtures of the jobs' tests."""

import functools
import shutil
import sys

import pytest
from fp16_networks import export_network
from made_engines import MadeEngines
from training_runs import NETWORKS, SMALL, make_photos

from deploykit.bundle import open_bundle
from deploykit.jobs import bench
from deploykit.jobs.train import TrainingResult, train_classifier


@pytest.fixture
def bundle(tmp_path, exported_bundle):
    """A copy of the exported bundle that a test may change."""
    folder = tmp_path / "colours"
    shutil.copytree(exported_bundle.folder, folder)
    return open_bundle(folder)


@pytest.fixture
def engine_bundle(tmp_path, built_engine):
    """A copy of the bundle with an engine that a test may change."""
    folder = tmp_path / "engines" / "colours"
    shutil.copytree(built_engine.bundle.folder, folder)
    return open_bundle(folder)


@pytest.fixture
def engines(monkeypatch, rtx_4070, exported_bundle):
    """Engines of that bundle open on a GPU, and answer rightly."""
    made = MadeEngines(exported_bundle, rtx_4070)
    monkeypatch.setattr("deploykit.jobs.engines.open_engine", made)
    return made


@pytest.fixture(scope="session")
def export_toy(tmp_path_factory, photo_folder):
    """Export a network of ``fp16_networks``, each once."""

    @functools.cache
    def export(name):
        return export_network(name, photo_folder, tmp_path_factory.mktemp(name))

    return export


@pytest.fixture
def toy(tmp_path, export_toy):
    """Copy a bundle of a network of ``fp16_networks``, to change it."""

    def copy(name):
        folder = tmp_path / "toys" / name.lower()
        shutil.copytree(export_toy(name).folder, folder)
        return open_bundle(folder)

    return copy


@pytest.fixture
def no_onnx(monkeypatch):
    """An installation without the extra ``graph``."""
    for name in [name for name in sys.modules if name.startswith("deploykit.graph")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)


@pytest.fixture
def only(monkeypatch):
    """Let bench measure some options alone: ``only(ORT, PLAIN)``."""

    def keep(*wanted):
        listed = bench.list_options

        def some(bundle, progress):
            able, left_out = listed(bundle, progress)
            return [option for option in able if option in wanted], left_out

        monkeypatch.setattr(bench, "list_options", some)

    return keep


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


@pytest.fixture
def train(tmp_path, photos):
    """``train_classifier`` with small defaults."""
    code = tmp_path / "networks.py"
    code.write_text(NETWORKS, encoding="utf-8")

    def run(output="run", *, network="Tiny", folder=photos, **options) -> TrainingResult:
        defaults = {"epochs": 2, "learning_rate": 0.02, "preprocessing": SMALL, "device": "cpu"}
        return train_classifier(
            folder,
            arch=f"{code}:{network}",
            output=tmp_path / output,
            **(defaults | options),
        )

    return run
