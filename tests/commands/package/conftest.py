"""Fixtures of ``package``."""

import pytest

from deploykit.commands.package.request import PackageRequest
from deploykit.commands.package.run import package_bundle


@pytest.fixture
def package(tmp_path):
    """Package a bundle into ``out`` in a folder of its own."""

    def call(bundle, form, name="out", **options):
        output = tmp_path / "packages" / name
        return package_bundle(bundle, PackageRequest(format=form, output=output, **options))

    return call
