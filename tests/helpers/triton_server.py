"""A real Triton, from the wheel of ``nvidia-pytriton``: its Python backend, on a CPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

_WHEEL = "nvidia-pytriton==0.7.0"
_SECONDS = 90
#: Runs the repository's ONNX in the place of the ONNX backend, which that wheel does not have.
_TWIN = """
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils

OUTPUTS = ["logits", "probabilities"]


class TritonPythonModel:
    def initialize(self, args):
        graph = Path(__file__).parent / "model.onnx"
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
        found = zip(OUTPUTS, self.session.run(OUTPUTS, {"images": images}))
        return pb_utils.InferenceResponse([pb_utils.Tensor(*each) for each in found])
"""


def make_environment(folder: Path, requirements: Path) -> None:
    """Install Triton, what the repository's Python model needs, and tritonclient.

    Skips the test where they cannot be had.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not sys.platform.startswith("linux"):
        pytest.skip("nvidia-pytriton has wheels for Linux only")
    runtime = metadata.version("onnxruntime-gpu")
    pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check"]
    packages = ["numpy<2", f"onnxruntime=={runtime}", "tritonclient[http,grpc]"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "install", "--quiet", "-r", str(requirements), *packages],
        [*pip, "download", "--quiet", "--no-deps", "-d", str(folder), _WHEEL],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"Triton cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    (wheel,) = folder.glob("nvidia_pytriton-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    server = folder / "wheel" / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"nvidia-pytriton has no stub for Python {python}")
    shutil.copy(stub, server / "backends" / "python")
    for program in (server / "bin" / "tritonserver", server / "backends" / "python" / stub.name):
        program.chmod(0o755)


def make_twin(repository: Path, name: str) -> None:
    """Let a Python model run the network's ONNX; all else of the repository stays as it is."""
    config = repository / name / "config.pbtxt"
    lines = config.read_text().replace('backend: "onnxruntime"', 'backend: "python"').splitlines()
    config.write_text("\n".join(line for line in lines if "default_model_filename" not in line))
    (repository / name / "1" / "model.py").write_text(_TWIN)


class Triton:
    """A server that runs.

    Attributes:
        environment: See :func:`make_environment`.
        http, grpc: Where it listens: ``127.0.0.1:PORT``.
    """

    def __init__(self, environment: Path, http: str, grpc: str) -> None:
        self.environment, self.http, self.grpc = environment, http, grpc

    def is_ready(self, model: str) -> bool:
        """Whether it has loaded a model."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/models/{model}/ready", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def run_client(self, code: str, *arguments: object) -> None:
        """Run Python that uses tritonclient, which wants another protobuf than ONNX."""
        command = [self.environment / "bin" / "python", "-c", code, self.http, self.grpc]
        done = subprocess.run(
            [*map(str, command), *map(str, arguments)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def serving(environment: Path, repository: Path, log: Path):
    """Serve a repository on the loopback until the block ends."""
    server = environment / "wheel" / "pytriton" / "tritonserver"
    http, grpc = _free_ports()
    command = [
        *(server / "bin" / "tritonserver", "--model-repository", repository),
        *("--backend-directory", server / "backends", "--exit-on-error=false"),
        *("--http-address", "127.0.0.1", "--http-port", http),
        *("--grpc-address", "127.0.0.1", "--grpc-port", grpc, "--allow-metrics=false"),
    ]
    # Its Python is an isolated one, which takes the packages of the python3 on its path.
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    more = {
        "PATH": path,
        "LD_LIBRARY_PATH": str(environment / "wheel" / "nvidia_pytriton.libs"),
        "ORT_DISABLE_TELEMETRY": "1",
    }
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*map(str, command)],
            env=os.environ | more,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its Python processes can be ended with it
        )
    try:
        _wait_until_live(process, http, log)
        yield Triton(environment, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)


def _wait_until_live(process: subprocess.Popen[bytes], http: int, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/health/live", timeout=5),
        ):
            return
        time.sleep(0.2)
    raise AssertionError(f"Triton did not start: {log.read_text(errors='replace')[-3000:]}")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
