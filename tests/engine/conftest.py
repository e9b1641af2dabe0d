"""A graph for TensorRT, and builds of it."""

import functools

import pytest
from engine_graphs import DEPLOY_GRAPH, Altered, save_graph

from deploykit.engine.build import engine_from_onnx
from deploykit.specs.engine import Profile


@pytest.fixture(scope="session")
def deploy_graph(tmp_path_factory):
    """A small FP16 deploy graph; its folder has a name that no code page of Windows can write."""
    folder = tmp_path_factory.mktemp("鳥-ö")
    return save_graph(folder / "fp16.onnx", DEPLOY_GRAPH)


@pytest.fixture(scope="session")
def build(rtx, deploy_graph):
    """Build the small graph, or another, with anything else than the defaults."""

    def build(graph=deploy_graph, targets=("sm89",), profile=None, **options):
        profile = profile or Profile()
        return engine_from_onnx(rtx, graph, profile=profile, targets=targets, **options)

    return build


@pytest.fixture
def alter_builder(rtx, monkeypatch):
    """Let a test replace methods of TensorRT's builder; each is given the real one first."""
    real = rtx.trt.Builder

    def alter(**methods):
        def make(log):
            builder = real(log)
            bound = {name: functools.partial(each, builder) for name, each in methods.items()}
            return Altered(builder, **bound)

        monkeypatch.setattr(rtx.trt, "Builder", make)

    return alter
