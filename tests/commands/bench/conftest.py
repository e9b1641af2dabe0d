"""Fixtures of the tests of bench."""

import pytest

from deploykit.commands.bench import run as bench


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
