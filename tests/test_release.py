"""What a release is: wheel and sdist are whole, install where nothing is, and predict there."""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import deploykit
from deploykit.commands.package.wheel import write_wheel

ROOT = Path(deploykit.__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*words, **settings):
    """Run a program; gives its stdout, and fails with all that it said."""
    command = [*map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The wheel and the sdist of this checkout; the wheel is built from the sdist."""
    for package in ("build", "twine"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_release_metadata(release):
    run(sys.executable, "-m", "twine", "check", "--strict", *release.values())
    assert all(deploykit.__version__ in file.name for file in release.values())
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {deploykit.__version__} " in changelog


def test_release_sdist_has_every_file(release):
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    tracked = {name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()}
    with tarfile.open(release["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked - names == set()


def test_release_wheel_is_that_of_containers(release, tmp_path):
    def files(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if ".dist-info" not in name]
            return {name: archive.read(name) for name in names}

    assert files(release["wheel"]) == files(write_wheel(tmp_path))


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_release_installs_and_predicts(kind, release, tmp_path, exported_bundle, photo_folder):
    """In an environment that has nothing else, and in a folder that is no checkout."""
    venv.create(tmp_path / "environment")
    scripts = tmp_path / "environment" / ("Scripts" if os.name == "nt" else "bin")
    options = ("--quiet", "--no-compile", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python")
    run(*pip, "install", *options, release[kind])

    def here(*words):
        return run(scripts / "deploykit", *words, cwd=tmp_path)

    assert here("--version").split() == ["deploykit", deploykit.__version__]
    found = json.loads(here("doctor", "--json"))["result"]
    status = {each["name"]: each["status"] for each in found["findings"]}
    assert status["onnxruntime-cpu"] == "works"
    assert status["torch"] == "not installed"
    told = here("predict", photo_folder, "--bundle", exported_bundle.folder, "--output", "-")
    rows = [json.loads(line) for line in told.splitlines()]
    assert {row["status"] for row in rows} == {"ok"}
    photos = {path.relative_to(photo_folder).as_posix() for path in photo_folder.rglob("*.png")}
    assert {row["path"] for row in rows} == photos
