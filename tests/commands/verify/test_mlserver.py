"""``verify --server`` against a real MLServer, in an environment of its own: it takes minutes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from urllib.error import URLError

import pytest

from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

RUNTIME = """
import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Right(MLModel):
    red = 0

    async def load(self):
        self.session = onnxruntime.InferenceSession("repository/model.onnx")
        return True

    async def predict(self, payload):
        images = NumpyCodec.decode_input(payload.inputs[0]).astype(int)
        images = np.clip(images + [self.red, 0, 0], 0, 255).astype(np.uint8)
        (logits,) = self.session.run(None, {"images": images})
        output = NumpyCodec.encode_output("logits", logits)
        return InferenceResponse(model_name=self.name, outputs=[output])


class WrongMean(Right):
    red = 10
"""


def free_ports(count):
    """Ports that were free a moment ago."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


@pytest.fixture(scope="module")
def ports(tmp_path_factory, exported_bundle):
    """An MLServer with a right model and a wrong one; its ports for HTTP and gRPC."""
    home = tmp_path_factory.mktemp("mlserver")
    python = home / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    install = [python, "-m", "pip", "install", "-q", "mlserver>=1.7", "onnxruntime"]
    subprocess.run(install, check=True)
    http, grpc, metrics = free_ports(3)
    repository = home / "repository"
    for name, kind in (("colours", "Right"), ("wrong", "WrongMean")):
        folder = repository / name
        folder.mkdir(parents=True)
        (folder / "runtimes.py").write_text(RUNTIME, encoding="utf-8")
        settings = {
            "name": name,
            "implementation": f"runtimes.{kind}",
            "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 16, 16, 3]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
        }
        (folder / "model-settings.json").write_text(json.dumps(settings), encoding="utf-8")
    shutil.copy(exported_bundle.folder / "deploy" / "fp32.onnx", repository / "model.onnx")
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc}
    more = {"metrics_port": metrics, "parallel_workers": 0}
    (repository / "settings.json").write_text(json.dumps(settings | more), encoding="utf-8")
    with (home / "log").open("w") as log:
        command = [python, "-c", "from mlserver.cli.main import main; main()", "start", repository]
        server = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)
        try:
            wait_until_ready(server, f"http://127.0.0.1:{http}/v2/health/ready", home / "log")
            yield http, grpc
        finally:
            server.terminate()
            server.wait(30)


def wait_until_ready(server, url, log):
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"MLServer does not start:\n{log.read_text()[-3000:]}")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_mlserver_passes_and_fails_with_a_wrong_mean(
    ports, exported_bundle, photo_folder, protocol
):
    port = ports[protocol == "grpc"]

    def verified(model):
        url = f"127.0.0.1:{port}/v2/models/{model}"
        request = VerifyRequest(server=url, protocol=protocol, images=photo_folder)
        return verify_bundle(exported_bundle, request)

    right, wrong = verified("colours"), verified("wrong")
    assert right.passed
    assert right.verdicts[0].measurement.max_relative_error < 1e-5
    assert wrong.verdicts[0].failed
    assert "logit error" in " ".join(wrong.verdicts[0].reasons)
