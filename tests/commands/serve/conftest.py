"""A server that the tests of a folder share."""

import pytest
from serving import served

import deploykit
from deploykit.commands.serve import process


@pytest.fixture(autouse=True, scope="session")
def no_waiting():
    """Nobody balances the load here, and nobody waits for a look."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(process, "_NOTICE_SECONDS", 0.0)
        monkeypatch.setattr(process, "_WATCH_SECONDS", 0.05)
        yield


@pytest.fixture(scope="session")
def server(exported_bundle, no_waiting):
    with served(exported_bundle) as found:
        yield found
    assert found.summary.unanswered == 0


@pytest.fixture(scope="session")
def photo(photo_folder):
    """The bytes of a red one."""
    return (photo_folder / "red" / "00.png").read_bytes()


@pytest.fixture(scope="session")
def other(tmp_path_factory, network_file, checkpoint, photo_folder):
    """The same network under the same name, multi-label, with other names for its classes."""
    return deploykit.export(
        f"{network_file}:Net",
        str(checkpoint),
        classes=["azure", "lime", "rose"],
        images=photo_folder,
        input_size=16,
        head="multi-label",
        thresholds={"azure": 0.5, "lime": 0.6, "rose": 0.7},
        artifacts=tmp_path_factory.mktemp("other"),
        name="colours",
    )
