"""How a package takes its place, and what it never replaces."""

import errno
import json
import os
import stat

import pytest

from deploykit.commands.app import run
from deploykit.commands.package import run as job
from deploykit.commands.package.request import PackageRequest
from deploykit.errors import InputError, UsageError

FORMS = ["triton", "zip"]


def place(form):
    return "out.zip" if form == "zip" else "out"


@pytest.mark.parametrize("form", FORMS)
def test_package_replaces_only_with_overwrite(form, package, exported_bundle):
    first = package(exported_bundle, form, place(form))
    with pytest.raises(UsageError, match="is there") as error:
        package(exported_bundle, form, place(form))
    assert "--overwrite" in error.value.hint
    again = package(exported_bundle, form, place(form), overwrite=True)
    assert again.files == first.files
    assert [path.name for path in again.output.parent.iterdir()] == [place(form)]


@pytest.mark.parametrize("form", FORMS)
def test_package_never_replaces_what_it_did_not_write(form, package, exported_bundle, tmp_path):
    output = tmp_path / "packages" / place(form)
    output.parent.mkdir()
    if form == "zip":
        output.write_bytes(b"PK\x03\x04 of somebody else")
    else:
        output.mkdir()
        (output / "deploykit.json").write_text(json.dumps({"written_by": "somebody else"}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="did not write it"):
        package(exported_bundle, form, place(form), overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_package_never_replaces_what_was_added(package, exported_bundle):
    output = package(exported_bundle, "triton").output
    (output / "another_model").mkdir()
    (output / "another_model" / "config.pbtxt").touch()
    with pytest.raises(UsageError, match="or not all of it"):
        package(exported_bundle, "triton", overwrite=True)


@pytest.mark.parametrize("form", FORMS)
def test_package_follows_no_link(form, package, exported_bundle, tmp_path):
    inner = package(exported_bundle, form, place(form)).output
    target = tmp_path / place(form)
    inner.rename(target)
    inner.symlink_to(target)
    with pytest.raises(UsageError, match="is a link"):
        package(exported_bundle, form, place(form), overwrite=True)


@pytest.mark.parametrize("form", FORMS)
def test_package_writes_nothing_into_the_bundle(form, package, bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle.folder)
    before = sorted(bundle.folder.rglob("*"))
    for folder in (bundle.folder, tmp_path / "link", bundle.folder / "deploy" / "new"):
        with pytest.raises(UsageError, match="is inside the bundle"):
            package(bundle, form, folder / place(form))
    assert sorted(bundle.folder.rglob("*")) == before


def test_package_command_where_nothing_can_be_locked(
    exported_bundle, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("deploykit.system.files._LOCK_SECONDS", 0.1)
    monkeypatch.setattr("filelock.FileLock._acquire", lambda self: None)
    wanted = ["package", "--format", "zip", str(tmp_path / "out.zip")]
    assert run([*wanted, "--bundle", str(exported_bundle.folder)]) == 4
    assert "no file can be locked there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_package_keeps_the_old_where_the_new_fails(package, exported_bundle, monkeypatch):
    first = package(exported_bundle, "triton")
    rename = job.Path.replace

    def refuse(path, target):
        if path.name == "out" and path.parent != first.output.parent:
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(job.Path, "replace", refuse)
    with pytest.raises(InputError, match="could not be put in place"):
        package(exported_bundle, "triton", overwrite=True)
    assert {*first.files} <= {
        path.relative_to(first.output).as_posix() for path in first.output.rglob("*")
    }


@pytest.mark.parametrize("form", FORMS)
def test_package_on_a_full_disk_leaves_nothing(
    form, package, exported_bundle, monkeypatch, tmp_path
):
    write = job.FORMATS[form]

    def fill(*arguments):
        write(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(job.FORMATS, form, fill)
    with pytest.raises(InputError, match=rf"Writing .*{place(form)} failed: No space left"):
        package(exported_bundle, form, place(form))
    assert not (tmp_path / "packages").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_package_can_be_read_by_others(package, exported_bundle):
    output = package(exported_bundle, "triton").output
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(output.stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"format": "zip", "preprocess": True},
            "Nothing is meant by --preprocess with --format zip",
        ),
        ({"format": "zip", "engines": ("a",), "max_batch": 3}, "by --engine and --max-batch with"),
        ({"format": "triton", "engines": ("a",), "precision": "fp16"}, "exclude each other"),
        ({"format": "triton", "max_batch": 0}, "--max-batch must be at least 1; got 0"),
    ],
)
def test_request_refuses_options_that_mean_nothing(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        PackageRequest(output=tmp_path, **options)


def test_package_command(exported_bundle, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["package", str(output), "--bundle", str(exported_bundle.folder)]
    assert run([*arguments, "--format", "triton", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["result"]
    assert found["output"] == str(output)
    assert found["files"].keys() >= {"colours/config.pbtxt"}
    assert run([*arguments, "--format", "triton", "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert f"written  {output}" in out
    assert out.splitlines()[-1] == f"tritonserver --model-repository {output}"
    assert run([*arguments, "--format", "torchserve"]) == 2
    assert "there are triton, zip, container" in capsys.readouterr().err
