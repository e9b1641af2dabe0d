"""Fixtures of the runtimes' tests."""

import pytest

from deploykit.specs.preprocessing import Preprocessing


@pytest.fixture(scope="session")
def small_preprocessing():
    """Of the small network: not square, so that swapped sides show."""
    return Preprocessing(resize=(32, 40))


@pytest.fixture(scope="session")
def small_graphs(tmp_path_factory, small_preprocessing):
    """The small network's deploy graphs: their paths by precision."""
    from runtime_graphs import small_network, write_deploy_graphs

    folder = tmp_path_factory.mktemp("graphs")
    return write_deploy_graphs(small_network(), small_preprocessing, folder)
