"""A folder that goes away while it is read is told from files that do."""

import os
import shutil

import pytest

from deploykit.errors import InputError
from deploykit.images.scan import FolderPresence


def test_a_folder_that_is_there_is_fine_whatever_becomes_of_its_files(tmp_path):
    (tmp_path / "a.png").touch()
    presence = FolderPresence(tmp_path)
    (tmp_path / "a.png").unlink()
    presence.check()


def test_a_folder_that_goes_away_is_told(tmp_path):
    folder = tmp_path / "stick"
    folder.mkdir()
    presence = FolderPresence(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="stick went away while its images were read") as caught:
        presence.check()
    assert "--resume" in caught.value.hint


def test_the_mount_point_of_a_drive_is_not_the_drive(tmp_path, monkeypatch):
    presence = FolderPresence(tmp_path)
    elsewhere = os.stat_result([0, 0, tmp_path.stat().st_dev + 1, *[0] * 7])
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "stat", lambda path: elsewhere)
        with pytest.raises(InputError, match="another drive is in its place"):
            presence.check()
    presence.check()


def test_a_folder_that_could_never_be_listed_may_have_files(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        presence = FolderPresence(tmp_path)
        presence.check()
    presence.check()


def test_a_folder_that_cannot_be_listed_any_more_went_away(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(107, "Transport endpoint is not connected")

    presence = FolderPresence(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(InputError, match="Transport endpoint"):
            presence.check()
