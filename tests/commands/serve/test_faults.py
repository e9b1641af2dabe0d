"""Many requests, good and bad, at once: who is let in gets the right answer, and memory stays."""

import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import psutil
import pytest
from odd_files import png

import deploykit
from deploykit.commands.predict.tables import json_line

pytestmark = pytest.mark.skipif(os.name == "nt", reason="many sockets of one process")

#: A few bytes that say that they have 4 billion pixels.
BOMB = png(65_000, 65_000)
QUEUE, AT_ONCE = 8, 800  # 100 times as many as there are places


class Asker:
    """Sends requests of every kind, and judges what comes back."""

    def __init__(self, port, rows, pixels, logits):
        self._port, self._rows, self._pixels, self._logits = port, rows, pixels, logits
        self.seen = Counter()

    async def ask(self, seed):
        rng = random.Random(seed)
        kinds = (
            self.photo,
            self.tensor,
            self.broken,
            self.cut,
            self.slow,
            self.large,
            self.nonsense,
        )
        kind = rng.choices(kinds, (50, 20, 10, 8, 4, 4, 4))[0]
        try:
            async with asyncio.timeout(120):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    status = await kind(rng, reader, writer)
                finally:
                    writer.transport.abort()
        except ConnectionError:
            status = "reset"
        self.seen[kind.__name__, status] += 1

    async def photo(self, rng, reader, writer):
        data, row = rng.choice(self._rows)
        status, body = await self._sent(reader, writer, "/predict", data)
        if status == 200:
            assert json.loads(body) == row
        return status

    async def tensor(self, rng, reader, writer):
        place = rng.randrange(len(self._pixels))
        data = self._pixels[place].tobytes()
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 16, 16, 3]}
        tensor["parameters"] = {"binary_data_size": len(data)}
        text = json.dumps({"inputs": [tensor]}).encode()
        status, body = await self._sent(
            *(reader, writer, "/v2/models/colours/infer", text + data),
            f"Inference-Header-Content-Length: {len(text)}\r\n",
        )
        if status == 200:
            found = json.loads(body)["outputs"][0]["data"]
            assert np.array_equal(np.array(found, np.float32), self._logits[place])
        return status

    async def broken(self, rng, reader, writer):
        data, _ = rng.choice(self._rows)
        data = rng.choice([BOMB, data[: len(data) // 2], b"<html>", rng.randbytes(500)])
        return (await self._sent(reader, writer, "/predict", data))[0]

    async def cut(self, rng, reader, writer):
        data, _ = rng.choice(self._rows)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        whole = head + data
        writer.write(whole[: rng.randrange(len(whole))])
        await writer.drain()
        writer.transport.abort()
        return "cut"

    async def slow(self, rng, reader, writer):
        data, row = rng.choice(self._rows)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        for start in range(0, len(head + data), 400):
            writer.write((head + data)[start : start + 400])
            await asyncio.sleep(0.02)
        status, body = await self._received(reader)
        if status == 200:
            assert json.loads(body) == row
        return status

    async def large(self, rng, reader, writer):
        return (await self._sent(reader, writer, "/predict", bytes(200_000)))[0]

    async def nonsense(self, rng, reader, writer):
        writer.write(rng.randbytes(200) + b"\r\n\r\n")
        return (await self._received(reader))[0]

    async def _sent(self, reader, writer, path, data, more=""):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n{more}\r\n"
        writer.write(head.encode() + data)
        return await self._received(reader)

    @staticmethod
    async def _received(reader):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"(?i)\r\ncontent-length: (\d+)", head)[1])
            return int(head[9:12]), await reader.readexactly(length)
        except asyncio.IncompleteReadError:
            raise ConnectionResetError from None


@contextlib.contextmanager
def started(bundle):
    command = [sys.executable, "-m", "deploykit", "serve", "--bundle", str(bundle.folder)]
    command += ["--port", "0", "--runtime", "onnxruntime-cpu", "--max-queue", str(QUEUE)]
    command += ["--max-body", "100KiB", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(rb"listening on http://127.0.0.1:(\d+)", line):
                break
        reader = threading.Thread(target=lambda: lines.extend(process.stderr))
        reader.start()
        try:
            yield process.pid, int(found[1])
            process.terminate()
            assert json.loads(process.stdout.read())["result"]["unanswered"] == 0
        finally:
            process.kill()
            reader.join()


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_request_that_is_let_in_is_answered_rightly(exported_bundle, photo_folder, count):
    options = {"bundle": exported_bundle, "runtime": "onnxruntime-cpu"}
    rows = [
        (
            (photo_folder / row.path).read_bytes(),
            json.loads(json_line(row, 3)) | {"path": "image", "expected": None},
        )
        for row in deploykit.predict(photo_folder, **options)
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    with deploykit.load(exported_bundle, runtime="onnxruntime-cpu") as model:
        logits = model.logits(pixels)

    with started(exported_bundle) as (pid, port):
        asker = Asker(port, rows, pixels, logits)
        server = psutil.Process(pid)

        async def ask_all(seeds, at_once):
            room = asyncio.Semaphore(at_once)

            async def ask(seed):
                async with room:
                    await asker.ask(seed)

            await asyncio.gather(*map(ask, seeds))

        asyncio.run(ask_all(range(count // 2), AT_ONCE))
        before = server.memory_info().rss
        asyncio.run(ask_all(range(count // 2, count), 2 * QUEUE))
        grown = (server.memory_info().rss - before) / 2**20
    assert grown < 32, f"{grown:.0f} MiB"

    assert asker.seen.total() == count
    statuses = {kind: {s for k, s in asker.seen if k == kind} for kind, _ in asker.seen}
    # A server that has more connections than it takes may close one that it has not looked at.
    busy = {503, "reset"}
    assert statuses["photo"] <= {200} | busy
    assert statuses["tensor"] <= {200} | busy
    assert statuses["slow"] <= {200, 408} | busy
    assert statuses["broken"] <= {422} | busy
    assert statuses["large"] <= {413} | busy
    assert statuses["nonsense"] <= {400} | busy
    assert asker.seen["photo", 200] > count / 20
    assert asker.seen["photo", 503] > 0  # the queue was full
    assert asker.seen["tensor", 200] > 0
    resets = sum(count for (_, status), count in asker.seen.items() if status == "reset")
    assert resets < count / 20, asker.seen
    print(asker.seen, f"grown {grown:.1f} MiB")
