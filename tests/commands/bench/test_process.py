"""The process of a candidate: what it measures, and that it spoils nothing when it fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bench_runs
import numpy as np
import pytest
from bench_runs import ORT
from fake_session import FakeSession

from deploykit.commands.bench import measure
from deploykit.commands.bench import process as processes
from deploykit.commands.bench.measure import OpenCandidate
from deploykit.commands.bench.process import CandidateProcess
from deploykit.errors import GraphError, ImagesError, ModelError
from deploykit.images.scan import scan_images

USERS_SCRIPT = """
import deploykit

print("the script runs")
found = deploykit.bench({folder!r}, images={images!r}, batch_sizes=[1], seconds=0.1)
print("measured", [each.name for each in found.measured])
"""


@pytest.fixture
def files(bundle, photo_folder):
    return list(scan_images(photo_folder, bundle.manifest.labels.names).files)


@pytest.fixture
def start(bundle, files, tmp_path):
    """Start processes, which end with the test."""
    started = []
    known = {file.name: (file.expected,) for file in files}

    def begin(folder=bundle.folder, candidate=ORT):
        log = tmp_path / f"{len(started)}.txt"
        started.append(CandidateProcess(folder, candidate, files, known, log))
        return started[-1]

    yield begin
    for process in started:
        process.close()


@pytest.fixture
def opened_with(bundle, files, monkeypatch):
    """Open here a candidate that answers like this: ``(OpenCandidate, FakeSession)``."""

    def use(answer, **fields):
        session = FakeSession(answer, classes=3, input_size=(16, 16), **fields)
        monkeypatch.setattr(measure, "open_listed", lambda *args, **kwargs: session)
        return OpenCandidate(bundle.folder, ORT, files, {}, time.time()), session

    return use


def zeros(images):
    return np.zeros((len(images), 3))


def test_process_measures_a_candidate(start):
    process = start()
    process.ask(OpenCandidate.predict_sample)
    process.ask(OpenCandidate.compute, (1, 4), 0.3)
    process.ask(OpenCandidate.predict, 0.01)
    found = process.ask(OpenCandidate.measured)
    assert (found.candidate, found.spec.runtime, found.batch_size) == (ORT, "onnxruntime-cpu", 2)
    assert [timing.batch for timing in found.timings] == [1, 4]
    assert len(found.rates) == 1
    assert (found.labelled, found.correct) == (45, 45)
    assert 0 < found.first_answer_seconds < 60


def test_process_prints_nothing_on_the_parents_streams(start, capfd):
    assert start().ask(bench_runs.chatter) != os.getpid()
    assert capfd.readouterr() == ("", "")


def test_process_that_dies_gives_its_last_line(start):
    skipped = start().ask(bench_runs.die)
    assert skipped.candidate == ORT
    assert skipped.reason == "its process ended with exit code 7: out of luck"


@pytest.mark.skipif(os.name == "nt", reason="no such signal there")
def test_process_killed_by_the_system(start):
    process = start()
    os.kill(process.ask(bench_runs.chatter), signal.SIGKILL)
    reason = process.ask(OpenCandidate.predict_sample).reason
    assert "exit code -9: " in reason
    assert "memory runs out: smaller --batch-sizes may help" in reason


def test_process_that_hangs_is_not_waited_for(start, monkeypatch):
    process = start()
    pid = process.ask(bench_runs.chatter)
    monkeypatch.setattr(processes, "_LEAST_PATIENCE_SECONDS", 1.0)
    process.expect(0.02)
    hung = process.ask(bench_runs.hang)
    assert hung.candidate == ORT
    assert hung.reason == "its process did not answer within 1 seconds, and was ended"
    process.close()
    if os.name != "nt":
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_process_passes_an_error_on(start, tmp_path):
    skipped = start(tmp_path / "no-such-bundle").ask(OpenCandidate.predict_sample)
    assert "is not a bundle" in skipped.reason
    assert skipped.damaged


def test_process_imports_what_parent_would(start, tmp_path, monkeypatch):
    """Of the parent's path, and nothing of the current folder, whatever it is called."""
    for name in ("random", "socket", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stray file')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert start().ask(bench_runs.imported, "bench_runs") == bench_runs.__file__
    assert "PYTHONSAFEPATH" not in os.environ


def test_process_runs_a_users_script_once(bundle, photo_folder, tmp_path):
    """It has no ``if __name__ == "__main__"``, which multiprocessing would need."""
    script = tmp_path / "script.py"
    script.write_text(
        USERS_SCRIPT.format(folder=str(bundle.folder), images=str(photo_folder)), encoding="utf-8"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    first, measured = done.stdout.splitlines()
    assert first == "the script runs"
    assert "'onnxruntime-cpu fp32'" in measured


@pytest.mark.skipif(measure.peak_memory_bytes() is None, reason="this system does not tell")
def test_memory_peak_of_the_process_alone(start):
    """This process has more; the peak grows with what is held, and stays."""
    kept = bytearray(b"x") * 600_000_000
    before, held, later = start().ask(bench_runs.grow, 200_000_000)
    assert before < 500e6 < len(kept)
    assert 180e6 < held - before < 260e6
    assert abs(later - held) < 20e6  # the system counts by pages, and late


def test_measure_skips_vanished_images(bundle, files, tmp_path):
    for file in files[:4]:
        (tmp_path / Path(file.name).name).write_bytes(file.path.read_bytes())
    copies = list(scan_images(tmp_path, ()).files)
    opened = OpenCandidate(bundle.folder, ORT, copies, {}, time.time())
    opened.predict_sample()
    copies[0].path.unlink()
    with pytest.raises(ImagesError, match=r"of \d+ images of .* can no longer be read"):
        opened.predict(0.001)
    with pytest.raises(ImagesError, match="1 of 4 images"):
        opened.compute((1,), 0.01)


def test_measure_refuses_non_finite_logits(opened_with):
    with pytest.raises(ModelError, match="onnxruntime-cpu fp32 gives NaN or infinity"):
        opened_with(lambda images: np.full((len(images), 3), np.nan))
    opened, session = opened_with(zeros)
    session._answer = lambda images: np.full((len(images), 3), np.inf)
    with pytest.raises(ModelError):
        opened.predict_sample()


def test_compute_skips_first_run_of_each_size(opened_with):
    def answer(images):
        time.sleep(0.001)
        return zeros(images)

    opened, session = opened_with(answer)
    opened.predict_sample()
    session.batch_sizes.clear()
    opened.compute((1, 5), 0.01)
    runs = {timing.batch: len(timing.seconds) for timing in opened.measured().timings}
    assert {batch: session.batch_sizes.count(batch) - 1 for batch in (1, 5)} == runs


def test_compute_skips_only_the_sizes_that_fail(opened_with):
    def answer(images):
        if len(images) == 8:
            raise MemoryError
        if len(images) == 16:
            raise GraphError("the arena is full")
        time.sleep(0.001)
        return zeros(images)

    opened, session = opened_with(zeros, largest_batch=32)
    opened.predict_sample()
    session._answer = answer
    opened.compute((1, 8, 16, 32, 64), 0.05)
    session.batch_sizes.clear()
    opened.compute((1, 8, 16, 32, 64), 0.05)
    found = opened.measured()
    assert [timing.batch for timing in found.timings] == [1, 32]
    assert found.skipped_batches == {
        8: "memory does not hold so many images at once",
        16: "the arena is full",
        64: "it takes at most 32",
    }
    assert {*session.batch_sizes} == {1, 32}  # what was refused is not tried again


class Slow:
    """A session's answers that take so long for each image; the seconds are counted, not slept."""

    def __init__(self, monkeypatch, seconds_an_image):
        self.now, self.seconds_an_image = 100.0, seconds_an_image
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def __call__(self, images):
        self.now += self.seconds_an_image * len(images)
        return zeros(images)


def test_compute_skips_sizes_without_time(opened_with, monkeypatch):
    """30 s of 4 parts in 3 rounds; a prediction of 8 images takes 1.6 s of the 2.5 s it has."""
    slow = Slow(monkeypatch, 0.2)
    opened, _ = opened_with(slow)
    opened.predict_sample()
    start = slow.now
    for _ in range(3):
        opened.compute((1, 8, 32), 2.5)
        opened.predict(2.5)
    assert 20 < slow.now - start <= 30
    found = opened.measured()
    assert [timing.batch for timing in found.timings] == [1, 8, 32]
    assert [len(timing.seconds) for timing in found.timings] == [2, 1, 1]


def test_compute_of_a_very_slow_candidate_runs_the_smallest_size(opened_with, monkeypatch):
    slow = Slow(monkeypatch, 2.0)
    opened, session = opened_with(slow)
    opened.predict_sample()
    assert sum(session.batch_sizes[1:]) < 20  # not all 45 images: that takes 90 s
    start = slow.now
    for _ in range(3):
        opened.compute((1, 8, 32), 2.5)
    found = opened.measured()
    assert slow.now - start == pytest.approx(4.0)  # a warm-up and a run, once
    assert [timing.batch for timing in found.timings] == [1]
    assert found.skipped_batches == {
        8: "two runs take about 32.0 s: give more --seconds",
        32: "two runs take about 128.0 s: give more --seconds",
    }
    assert found.labelled < 20
