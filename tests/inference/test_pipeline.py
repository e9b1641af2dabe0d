"""Files in, logits out: in order, on every core, with nothing lost."""

import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_session import FakeSession
from PIL import Image

from deploykit.errors import GraphError, UsageError
from deploykit.images import batches as batches_module
from deploykit.images.scan import scan_images
from deploykit.inference import pipeline as _predict_pipeline
from deploykit.inference.pipeline import answer_files, shared_work
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.threads import StageClock

PREPROCESSING = Preprocessing(resize=(8, 8))


@pytest.fixture
def files(tmp_path):
    """23 images, image i all of grey i, but that 4 and 11 are broken."""
    for i in range(23):
        path = tmp_path / f"{i:02}.png"
        Image.new("RGB", (9, 9), (i, i, i)).save(path)
        if i in (4, 11):
            path.write_bytes(b"no image")
    return scan_images(tmp_path).files


def grey(images):
    return images.mean((1, 2, 3), dtype=np.float32)[:, None] * [[1, -1]]


class HostSession(FakeSession):
    """Takes several threads at once, and the later a batch comes the sooner it is done."""

    def __init__(self, answer=grey, **options):
        super().__init__(answer, classes=2, **options)
        self._spec = msgspec.structs.replace(self._spec, concurrent=True)
        self.threads = set()

    def _run(self, images):
        self.threads.add(threading.current_thread().name)
        time.sleep(0.02 / (1 + images.max()))
        return super()._run(images)


class DeviceSession(FakeSession):
    """Has batches in flight, of which it remembers the most."""

    def __init__(self):
        super().__init__(grey, classes=2)
        self.flying = {}
        self.most = 0

    def submit(self, images):
        ticket = len(self.batch_sizes)
        self.flying[ticket] = self.run(images.copy())
        self.most = max(self.most, len(self.flying))
        return ticket

    def collect(self, ticket):
        return self.flying.pop(ticket)


def answers(files, session, **options):
    settings = {"batch_size": 4, "workers": 3, "clock": StageClock()} | options
    return list(answer_files(files, PREPROCESSING, session, **settings))


SESSIONS = [HostSession, DeviceSession, lambda: FakeSession(grey, classes=2)]


@pytest.mark.parametrize("make", SESSIONS, ids=["host", "pipelined", "device"])
def test_pipeline_answers_every_file_in_order(files, make):
    batches = answers(files, make())
    assert [file for batch in batches for file in batch.files] == list(files)
    failures = [failure for batch in batches for failure in batch.failures]
    assert [i for i, failure in enumerate(failures) if failure] == [4, 11]
    logits = np.concatenate([batch.logits for batch in batches])
    assert logits[:, 0].tolist() == [i for i in range(23) if i not in (4, 11)]


@pytest.mark.parametrize("make", SESSIONS, ids=["host", "pipelined", "device"])
def test_pipeline_of_unreadable_files_runs_nothing(tmp_path, make):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    session = make()
    batches = answers(scan_images(tmp_path).files, session)
    assert [len(batch.logits) for batch in batches] == [0] * len(batches)
    assert sum(len(batch.files) for batch in batches) == 3
    assert session.batch_sizes == []


def test_pipeline_runs_host_session_in_workers(files):
    session = HostSession()
    answers(files, session)
    assert 1 < len(session.threads) <= 3
    assert threading.current_thread().name not in session.threads


def test_pipeline_batches_shrink_at_the_end(files):
    batches = answers(files, HostSession())
    assert [len(batch.files) for batch in batches] == [4, 4, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1]


def test_pipeline_has_two_batches_in_flight(files):
    session = DeviceSession()
    answers(files, session)
    assert session.most == 2
    assert session.flying == {}


def test_pipeline_session_error_ends_the_threads(files):
    def fail(images):
        raise GraphError("no")

    before = threading.active_count()
    with pytest.raises(GraphError, match="no"):
        answers(files, HostSession(fail))
    assert threading.active_count() == before


@pytest.mark.timeout(20)
def test_pipeline_session_error_blocks_no_worker(files):
    def fail(images):
        raise GraphError("no")

    with pytest.raises(GraphError, match="no"):
        answers(files * 4, HostSession(fail), workers=2, batch_size=1)


@pytest.mark.parametrize("make", SESSIONS, ids=["host", "pipelined", "device"])
def test_pipeline_without_files(make):
    assert answers([], make()) == []


@pytest.mark.parametrize("make", SESSIONS, ids=["host", "pipelined", "device"])
def test_pipeline_batch_size_beyond_the_files(files, make):
    batches = answers(files, make(), batch_size=10**15)
    assert sum(len(batch.files) for batch in batches) == 23


def test_pipeline_refuses_batches_beyond_memory(files):
    class Many(tuple):
        def __len__(self):
            return 10**16

    with pytest.raises(UsageError, match="memory does not hold") as caught:
        answers(Many(files), HostSession(), batch_size=10**15)
    assert "smaller" in caught.value.hint


@pytest.mark.parametrize(
    ("concurrent", "asked", "expected"),
    [
        (True, {"threads": None, "batch_size": None}, (40, 2)),
        (False, {"threads": None, "batch_size": None}, (16, 8)),
        (True, {"threads": 3, "batch_size": 5}, (3, 5)),
        (False, {"threads": 20, "batch_size": 64}, (20, 32)),
    ],
)
def test_shared_work_defaults(monkeypatch, concurrent, asked, expected):
    monkeypatch.setattr(_predict_pipeline, "usable_cpus", lambda: 40)
    monkeypatch.setattr(batches_module, "usable_cpus", lambda: 40)
    spec = FakeSession(grey, classes=2, largest_batch=None if concurrent else 32).spec
    assert shared_work(msgspec.structs.replace(spec, concurrent=concurrent), **asked) == expected


def test_pipeline_closed_ends_the_threads(files):
    before = threading.active_count()
    batches = answer_files(
        files, PREPROCESSING, HostSession(), batch_size=4, workers=3, clock=StageClock()
    )
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_pipeline_reads_ahead_within_limits(files, monkeypatch):
    read = []

    def spy(file, *arguments):
        read.append(file.name)
        return original(file, *arguments)

    original = batches_module.read_into
    monkeypatch.setattr(batches_module, "read_into", spy)
    many = files * 20
    batches = answer_files(
        many, PREPROCESSING, HostSession(), batch_size=4, workers=2, clock=StageClock()
    )
    next(batches)
    time.sleep(0.3)
    assert len(read) <= 4 * (2 * 2 + 1)
    batches.close()


@pytest.mark.parametrize("make", SESSIONS, ids=["host", "pipelined", "device"])
def test_pipeline_clock_counts_stages(files, make):
    clock = StageClock()
    answers(files, make(), clock=clock)
    assert clock.seconds["decode"] > 0
    assert clock.seconds["resize"] > 0
    assert clock.seconds["session"] > 0
    assert clock.seconds["write"] == 0
    assert isinstance(files[0].path, Path)
