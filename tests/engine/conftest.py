"""The flavour of TensorRT that builds without a GPU, and a graph for it."""

import pytest
from engine_graphs import DEPLOY_GRAPH, save_graph

from deploykit.engine.build import engine_from_onnx
from deploykit.engine.flavour import open_flavour
from deploykit.specs import Profile


@pytest.fixture(scope="session")
def rtx():
    """TensorRT for RTX, which builds on a CPU."""
    pytest.importorskip("tensorrt_rtx")
    return open_flavour("tensorrt_rtx")


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
