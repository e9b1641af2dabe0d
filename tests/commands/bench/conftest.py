"""Fixtures of the tests of bench."""

import pytest

from deploykit.commands.bench import run as bench


@pytest.fixture
def only(monkeypatch):
    """Let bench measure some options alone: ``only(ORT, PLAIN)``."""

    def keep(*wanted):
        listed = bench.list_options

        def some(bundle, progress):
            able, skipped = listed(bundle, progress)
            return [option for option in able if option in wanted], skipped

        monkeypatch.setattr(bench, "list_options", some)

    return keep
