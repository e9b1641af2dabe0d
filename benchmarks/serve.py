"""Serve: requests/s and latencies on loopback against the bare session and predict, on one machine.

    python benchmarks/serve.py BUNDLE IMAGES [--runtime onnxruntime-cpu] [--seconds 5] [--repeats 3]
        [--workers N] [--mlserver PYTHON]

Two tables, one for requests with a tensor (an image each, KServe v2, binary data) and one for
requests with a file's bytes (/predict). Clients share the cores with the server.

- bare session: as many threads as the server has slots run batches of its size, and nothing else.
- predict: the command's work on the same files, from the first file to a whole table.
- saturation: so many clients ask, each again as soon as it has its answer, that no slot ever
  waits. Medians of repeats that alternate with those above. Of all three the CPU time an image is
  shown, too: it says the same where others use the machine meanwhile.
- the other rows: an open loop. Requests are sent at a fixed rate, whatever has been answered, and
  a latency counts from when its request should have been sent. Rejected are those told to come
  back (503). Resident memory is the server's, all processes together.

With --mlserver: the same rates of tensors against MLServer with a runtime of its own that runs the
bundle's deploy graph on ONNX Runtime; PYTHON has mlserver and onnxruntime installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from predict import deploykit_rate

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.images.batches import read_bytes
from deploykit.images.scan import scan_images
from deploykit.inference.pipeline import shared_work
from deploykit.proof.auto import open_best
from deploykit.specs.session import PipelinedSession

CLIENTS = 16
RATES = (0.25, 0.5, 0.75, 1.0, 1.5)
MLSERVER_RUNTIME = """
import numpy as np, onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec

class Graph(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, request):
        images = NumpyCodec.decode_input(request.inputs[0])
        (logits,) = self.session.run(None, {"images": images.astype(np.uint8)})
        from mlserver.types import InferenceResponse
        return InferenceResponse(model_name=self.name, outputs=[
            NumpyCodec.encode_output("logits", logits)])
"""


class Work(NamedTuple):
    """Images/s, and the CPU time of an image in ms."""

    rate: float
    cpu_ms: float


class Load(NamedTuple):
    """What came of a load: requests/s answered, latencies in ms, and how many were rejected."""

    rate: float
    latencies_ms: list[float]
    rejected: int

    def at(self, percent: float) -> float:
        """A percentile of the latencies, in ms."""
        return float(np.percentile(self.latencies_ms, percent)) if self.latencies_ms else np.nan


class Client:
    """A connection that is kept."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, request: bytes) -> int:
        """Send a request, and return the status of its answer once all of it is there."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
        await self._reader.readexactly(length)
        return int(head[9:12])

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        await self._writer.wait_closed()


async def closed_loop(port: int, requests: list[bytes], seconds: float) -> Load:
    """So many clients that the server always has something to do."""
    latencies: list[float] = []
    start = time.perf_counter()

    async def ask_again(number: int) -> None:
        client = Client(port)
        await client.open()
        at = number
        while (begin := time.perf_counter()) < start + seconds:
            status = await client.ask(requests[at % len(requests)])
            assert status == 200, status
            latencies.append(1000 * (time.perf_counter() - begin))
            at += CLIENTS
        await client.close()

    await asyncio.gather(*map(ask_again, range(CLIENTS)))
    return Load(len(latencies) / (time.perf_counter() - start), latencies, 0)


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> Load:
    """Requests at random times, so many a second on average, whatever has been answered."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    idle: list[Client] = []
    latencies: list[float] = []
    rejected = 0
    start = time.perf_counter()

    async def ask(at: int) -> None:
        nonlocal rejected
        due = start + times[at]
        await asyncio.sleep(due - time.perf_counter())
        if idle:
            client = idle.pop()
        else:
            client = Client(port)
            await client.open()
        status = await client.ask(requests[at % len(requests)])
        if status == 200:
            latencies.append(1000 * (time.perf_counter() - due))
        else:
            assert status == 503, status
            rejected += 1
        idle.append(client)

    await asyncio.gather(*map(ask, range(len(times))))
    spent = time.perf_counter() - start
    for client in idle:
        await client.close()
    return Load(len(latencies) / spent, latencies, rejected)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request as bytes."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers)
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def tensor_requests(bundle: Bundle, images: np.ndarray) -> list[bytes]:
    """One request an image, its pixels as binary data."""
    found = []
    for image in images:
        data = image.tobytes()
        tensor = {
            "name": "images",
            "datatype": "UINT8",
            "shape": [1, *image.shape],
            "parameters": {"binary_data_size": len(data)},
        }
        output = {"name": "logits", "parameters": {"binary_data": True}}
        text = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
        header = f"Inference-Header-Content-Length: {len(text)}"
        found.append(post(f"/v2/models/{bundle.name}/infer", text + data, header))
    return found


def json_requests(images: np.ndarray) -> list[bytes]:
    """The same in JSON, which is what MLServer takes."""
    found = []
    for image in images:
        tensor = {
            "name": "images",
            "datatype": "UINT8",
            "shape": [1, *image.shape],
            "data": image.ravel().tolist(),
        }
        text = json.dumps({"inputs": [tensor]}).encode()
        found.append(post("/v2/models/graph/infer", text, "Content-Type: application/json"))
    return found


@contextmanager
def server(bundle: Bundle, runtime: str, workers: int) -> Iterator[tuple[int, psutil.Process]]:
    """The command in a process of its own; gives its port."""
    command = [sys.executable, "-m", "deploykit", "serve", "--port", "0", "--runtime", runtime]
    command += ["--bundle", str(bundle.folder), "--workers", str(workers)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(rb"listening on http://127.0.0.1:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        try:
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.communicate()


@contextmanager
def mlserver(python: str, graph: Path) -> Iterator[tuple[int, psutil.Process]]:
    """MLServer with the deploy graph; gives its port."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ports = [free_port() for _ in range(3)]
        names = ("http_port", "grpc_port", "metrics_port")
        settings: dict[str, object] = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False}
        (folder / "settings.json").write_text(
            json.dumps(settings | dict(zip(names, ports, strict=True)))
        )
        (folder / "graph_runtime.py").write_text(MLSERVER_RUNTIME)
        model = {
            "name": "graph",
            "implementation": "graph_runtime.Graph",
            "parameters": {"uri": str(graph.resolve())},
        }
        (folder / "model-settings.json").write_text(json.dumps(model))
        environment = os.environ | {"PYTHONPATH": str(folder)}
        program = "from mlserver.cli import main; main()"
        with subprocess.Popen(
            [python, "-c", program, "start", str(folder)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                wait_until_ready(ports[0])
                yield ports[0], psutil.Process(process.pid)
            finally:
                process.terminate()


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_until_ready(port: int) -> None:
    """Wait for a server of KServe v2, a minute at most."""
    for _ in range(600):
        time.sleep(0.1)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready") as answer:
                if answer.status == 200:
                    return
        except OSError:
            continue
    raise SystemExit("MLServer did not start")


def bare_work(bundle: Bundle, runtime: str, images: np.ndarray, seconds: float) -> Work:
    """The session alone, in as many threads as the server has slots."""
    with open_best(bundle, runtime=runtime, pipelined=True) as session:
        slots, size = shared_work(session.spec, threads=None, batch_size=None)
        batch = np.ascontiguousarray(np.resize(images, (size, *images.shape[1:])))
        session.run(batch)
        counts = [0] * (slots if session.spec.concurrent else 1)
        end = time.perf_counter() + seconds

        def run(slot: int) -> None:
            while time.perf_counter() < end:
                session.run(batch)
                counts[slot] += size

        def run_ahead(slot: int) -> None:
            assert isinstance(session, PipelinedSession)
            ticket = session.submit(batch)
            while time.perf_counter() < end:
                later = session.submit(batch)
                session.collect(ticket)
                ticket = later
                counts[slot] += size
            session.collect(ticket)

        work = run_ahead if isinstance(session, PipelinedSession) else run
        threads = [threading.Thread(target=work, args=(slot,)) for slot in range(len(counts))]
        start, start_cpu = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        count, cpu = sum(counts), time.process_time() - start_cpu
        return Work(count / (time.perf_counter() - start), 1000 * cpu / count)


def predict_work(bundle: Bundle, folder: Path) -> Work:
    """The command's work on a folder."""
    start = time.process_time()
    rate = deploykit_rate(bundle, folder)
    cpu = time.process_time() - start
    return Work(rate, 1000 * cpu / len(scan_images(folder).files))


def served_work(started: tuple[int, psutil.Process], requests: list[bytes], seconds: float) -> Work:
    """The server at saturation, without its clients' CPU time."""
    port, process = started
    start = cpu_seconds(process)
    load = asyncio.run(closed_loop(port, requests, seconds))
    return Work(load.rate, 1000 * (cpu_seconds(process) - start) / len(load.latencies_ms))


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process and its children so far."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def batch_ms(bundle: Bundle, runtime: str, rate: float) -> float:
    """What one batch takes while all slots compute at this rate."""
    with open_best(bundle, runtime=runtime, pipelined=True) as session:
        slots, size = shared_work(session.spec, threads=None, batch_size=None)
        return 1000 * size * (slots if session.spec.concurrent else 1) / rate


def memory_mib(process: psutil.Process) -> float:
    """Resident memory of a process and its children."""
    everybody = [process, *process.children(recursive=True)]
    return float(sum(each.memory_info().rss for each in everybody) / 2**20)


def compare(
    title: str,
    baseline: Callable[[], Work],
    started: tuple[int, psutil.Process],
    requests: list[bytes],
    arguments: argparse.Namespace,
    batch: Callable[[float], float],
) -> None:
    """Print a table of one kind of request."""
    port, process = started
    asyncio.run(closed_loop(port, requests, 1.0))  # warm
    rounds = [
        (baseline(), served_work(started, requests, arguments.seconds))
        for _ in range(arguments.repeats)
    ]
    bare, most = (
        Work(*map(statistics.median, zip(*each, strict=True))) for each in zip(*rounds, strict=True)
    )
    parts = sorted(ours.rate / base.rate for base, ours in rounds)
    one = batch(bare.rate)
    print(
        f"\n{title:<24} {bare.rate:8.1f} images/s, {bare.cpu_ms:.1f} ms CPU an image, "
        f"a batch {one:.1f} ms"
    )
    print(
        f"serve at saturation      {most.rate:8.1f} images/s, {most.cpu_ms:.1f} ms CPU an image: "
        f"{statistics.median(parts):.3f} of the rate ({parts[0]:.3f} to {parts[-1]:.3f}), "
        f"{bare.cpu_ms / most.cpu_ms:.3f} by CPU time"
    )
    print_rates(port, process, requests, most.rate, arguments.seconds, one)


def print_rates(
    port: int,
    process: psutil.Process,
    requests: list[bytes],
    most: float,
    seconds: float,
    one: float,
) -> None:
    """Print a row for each rate of an open loop."""
    print("load    sent/s  answered/s  rejected   p50 ms   p99 ms  p99/batch  memory MiB")
    for part in RATES:
        load = asyncio.run(open_loop(port, requests, part * most, 2 * seconds))
        print(
            f"{part:4.2f}  {part * most:8.1f}  {load.rate:10.1f}  {load.rejected:8}  "
            f"{load.at(50):7.1f}  {load.at(99):7.1f}  {load.at(99) / one:9.2f}  "
            f"{memory_mib(process):10.0f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--runtime", default="onnxruntime-cpu")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mlserver", metavar="PYTHON")
    arguments = parser.parse_args()
    bundle, runtime = open_bundle(arguments.bundle), arguments.runtime
    preprocessing = bundle.manifest.preprocessing
    files = [file.path.read_bytes() for file in scan_images(arguments.images).files]
    read = [read_bytes(data, "image", preprocessing) for data in files[:64]]
    images = np.stack([each for each in read if isinstance(each, np.ndarray)])
    plain = "Content-Type: application/octet-stream"

    def batch(rate: float) -> float:
        return batch_ms(bundle, runtime, rate)

    with server(bundle, runtime, arguments.workers) as started:
        compare(
            "tensors: bare session",
            lambda: bare_work(bundle, runtime, images, arguments.seconds),
            *(started, tensor_requests(bundle, images), arguments, batch),
        )
        compare(
            "files: predict",
            lambda: predict_work(bundle, arguments.images),
            *(started, [post("/predict", data, plain) for data in files], arguments, batch),
        )
    if arguments.mlserver:
        graph = bundle.folder / bundle.manifest.deploy["fp32"]
        with mlserver(arguments.mlserver, graph) as (port, process):
            requests = json_requests(images[:16])
            most = asyncio.run(closed_loop(port, requests, arguments.seconds)).rate
            print(f"\nMLServer, tensors in JSON at saturation: {most:.1f} images/s")
            print_rates(port, process, requests, most, arguments.seconds, batch(most))


if __name__ == "__main__":
    main()
