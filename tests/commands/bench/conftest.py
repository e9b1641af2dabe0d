"""Fixtures of the tests of bench."""

import pytest

from deploykit.commands.bench import run as bench


@pytest.fixture
def only(monkeypatch):
    """Let bench measure some candidates alone: ``only(ORT, PLAIN)``."""

    def keep(*wanted):
        listed = bench.list_candidates

        def some(bundle, progress):
            able, skipped = listed(bundle, progress)
            return [each for each in able if each in wanted], skipped

        monkeypatch.setattr(bench, "list_candidates", some)

    return keep
