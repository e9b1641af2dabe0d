"""The processes that measure for bench: what they run and refuse, and how they take turns."""

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench_runs import BEGUN, OPENVINO, ORT, SAMPLE, contender_of

from deploykit.commands.bench import rounds as _bench_rounds
from deploykit.commands.bench import worker as _bench_worker
from deploykit.commands.bench.messages import (
    Begin,
    Begun,
    Compute,
    Computed,
    Predict,
    Predicted,
    PredictSample,
    Sample,
    SamplePredicted,
)
from deploykit.commands.bench.process import OptionError, Process, ProcessEndedError
from deploykit.commands.bench.results import PLAIN
from deploykit.commands.bench.rounds import Schedule, start_all, take_turns
from deploykit.commands.bench.timings import Timing
from deploykit.commands.bench.worker import OpenOption
from deploykit.errors import GraphError, ImagesError, ModelError
from deploykit.images.scan import ImageFile, scan_images
from deploykit.runtime.fake import FakeSession
from deploykit.system.progress import silent


@pytest.fixture
def begin(bundle, photo_folder):
    """What opens ONNX Runtime, with every photo."""
    files = scan_images(photo_folder, bundle.manifest.labels.names).files
    sample = Sample.of(photo_folder, files)
    return Begin(bundle=os.fsencode(bundle.folder), option=ORT, sample=sample)


@pytest.fixture
def answering(monkeypatch):
    """Let options open as a session that answers like this."""

    def use(answer):
        session = FakeSession(answer, classes=3, input_size=(16, 16))
        monkeypatch.setattr(_bench_worker, "open_option", lambda *args, **kwargs: session)
        return session

    return use


def elsewhere(tmp_path, monkeypatch, said):
    """Let deploykit be another, from a folder that is on this process's path alone."""
    package = tmp_path / "deploykit" / "commands" / "bench"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    worker = f"import os\ndef main(replies):\n    os.write(replies, {said!r})\n"
    (package / "worker.py").write_text(worker, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


def test_the_current_folder_has_no_say_in_what_is_imported(tmp_path, monkeypatch):
    (tmp_path / "msgspec.py").write_text("raise SystemExit('a stray file')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with Process() as process, pytest.raises(OptionError, match="nothing has begun"):
        process.ask(Predict(images=1), Predicted)


def test_a_process_imports_what_its_parent_would(tmp_path, monkeypatch):
    elsewhere(tmp_path, monkeypatch, json.dumps({"type": "Predicted", "seconds": 42}).encode())
    with Process() as process:
        assert process.ask(Predict(images=1), Predicted).seconds == 42


def test_what_is_no_answer_is_the_options_failure(tmp_path, monkeypatch):
    elsewhere(tmp_path, monkeypatch, b"hello\n")
    with Process() as process, pytest.raises(OptionError, match="its process said 'hello'"):
        process.ask(Predict(images=1), Predicted)


def test_a_process_that_ends_says_its_last_words():
    with (
        Process() as process,
        pytest.raises(OptionError, match=r"exit code 1: .*nothing has begun"),
    ):
        process.ask(Predict(images=1), Predicted)


@pytest.mark.skipif(os.name == "nt", reason="no such signal there")
def test_a_process_that_the_system_kills_says_what_that_means():
    with Process() as process:
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(OptionError, match=r"exit code -9: .*memory runs out"):
            process.ask(Predict(images=1), Predicted)


@pytest.mark.skipif(os.name == "nt", reason="every path is Unicode there")
def test_photos_find_their_way_whatever_their_folder_is_called():
    root = Path(os.fsdecode(b"/photos/\xff"))
    files = [ImageFile(root, "a.png", "cat"), ImageFile(root, "b.png")]
    sample = Sample.of(root, files)
    assert msgspec.json.decode(msgspec.json.encode(sample), type=Sample).files == files


def test_an_error_keeps_its_exit_code(begin):
    damaged = msgspec.structs.replace(begin, bundle=b"no-such-bundle")
    with Process() as process, pytest.raises(OptionError, match="is not a bundle") as caught:
        process.ask(damaged, Begun)
    assert caught.value.exit_code == 4


def test_photos_that_are_gone_do_not_count_as_predicted(begin, tmp_path):
    root = tmp_path / "moving"
    root.mkdir()
    for file in begin.sample.files[:4]:
        (root / Path(file.name).name).write_bytes(file.path.read_bytes())
    files = scan_images(root, ()).files
    opened = OpenOption(msgspec.structs.replace(begin, sample=Sample.of(root, files)))
    assert opened.predict(Predict(images=8)).seconds > 0
    files[0].path.unlink()
    with pytest.raises(ImagesError, match=r"2 of 8 photos of .* can no longer be read"):
        opened.predict(Predict(images=8))
    with pytest.raises(ImagesError, match="1 of 4 photos"):
        opened.compute(Compute(batches=(1,), seconds=0.01))


def test_logits_that_are_no_numbers_are_no_answer(begin, answering):
    answering(lambda images: np.full((len(images), 3), np.nan))
    with pytest.raises(ModelError, match="onnxruntime-cpu fp32 gives NaN or infinity"):
        OpenOption(begin)


def test_nor_are_they_for_one_photo_of_many(begin, answering):
    session = answering(lambda images: np.zeros((len(images), 3)))
    opened = OpenOption(begin)
    session._answer = lambda images: np.full((len(images), 3), np.inf)
    with pytest.raises(ModelError):
        opened.predict_sample()


def test_the_first_run_of_each_size_is_not_counted(begin, answering):
    def answer(images):
        time.sleep(0.001)
        return np.zeros((len(images), 3))

    session = answering(answer)
    opened = OpenOption(begin)
    session.batch_sizes.clear()
    found = opened.compute(Compute(batches=(1, 5), seconds=0.01)).seconds
    for batch in (1, 5):
        assert session.batch_sizes.count(batch) == len(found[batch]) + 1


def test_a_size_that_fails_leaves_the_others(begin, answering):
    def answer(images):
        if len(images) == 8:
            raise MemoryError
        if len(images) == 16:
            raise GraphError("the arena is full")
        return np.zeros((len(images), 3))

    answering(answer)
    opened = OpenOption(begin)
    found = opened.compute(Compute(batches=(1, 8, 16, 32), seconds=1e-6))
    assert found.seconds.keys() == {1, 32}
    assert found.refusals == {
        8: "memory does not hold so many images at once",
        16: "the arena is full",
    }


def test_the_first_answer_is_timed_from_the_start_of_the_process(begin, monkeypatch):
    class Slow:
        def __enter__(self):
            time.sleep(0.2)  # starting an interpreter
            return self

        def __exit__(self, *error):
            pass

        def ask(self, request, kind):
            time.sleep(0.1 if kind is Begun else 1.0)
            return BEGUN if kind is Begun else SAMPLE

    monkeypatch.setattr(_bench_rounds, "Process", Slow)
    with ExitStack() as stack:
        ((contender,), _) = start_all(stack, [begin], silent)
    assert 0.3 <= contender.first_answer_seconds < 1.0


def test_what_fails_in_its_turn_has_no_further_one():
    class Failing:
        def ask(self, request, kind):
            raise OptionError("its memory is full")

    class Working:
        def ask(self, request, kind):
            if isinstance(request, Compute):
                return Computed(seconds=dict.fromkeys(request.batches, (0.5,)), refusals={})
            return Predicted(seconds=2.0)

    contenders = [
        contender_of(option, process) for option, process in ((ORT, Failing()), (PLAIN, Working()))
    ]
    schedule = Schedule(batch_sizes=(1, 4, 8), repeats=5, seconds=600.0)
    going, failed, rounds = take_turns(contenders, schedule, silent)
    assert [each.option for each in going] == [PLAIN]
    assert [(each.option, each.reason) for each in failed] == [(ORT, "its memory is full")]
    assert rounds == 5
    assert going[0].latencies == {1: [0.5] * 5, 4: [0.5] * 5}  # 8 is more than it takes
    assert going[0].rates == [4.0] * 5


class Answering:
    """Answers at once, and writes down who was asked what."""

    def __init__(self, name, asked, refusals=()):
        self.name, self.asked, self.refusals = name, asked, dict.fromkeys(refusals, "too large")

    def ask(self, request, kind):
        self.asked.append((self.name, request))
        if isinstance(request, Predict):
            return Predicted(seconds=1.0)
        able = (batch for batch in request.batches if batch not in self.refusals)
        return Computed(seconds=dict.fromkeys(able, (0.1,)), refusals=self.refusals)


def test_another_option_begins_in_each_round():
    asked = []
    contenders = [
        contender_of(option, Answering(option.runtime, asked)) for option in (ORT, OPENVINO)
    ]
    take_turns(contenders, Schedule(batch_sizes=(1,), repeats=2, seconds=60.0), silent)
    predicted = [name for name, request in asked if isinstance(request, Predict)]
    assert predicted == ["onnxruntime-cpu", "openvino", "openvino", "onnxruntime-cpu"]


def test_a_size_that_was_refused_is_not_asked_again():
    asked = []
    contender = contender_of(ORT, Answering("ort", asked, refusals=(2,)))
    schedule = Schedule(batch_sizes=(1, 2, 8), repeats=2, seconds=60.0)
    going, failed, _ = take_turns([contender], schedule, silent)
    computed = [request.batches for _, request in asked if isinstance(request, Compute)]
    assert computed == [(1, 2), (1,)]
    assert contender.refusals == {2: "too large", 8: "it takes at most 4"}
    assert (going, failed) == ([contender], [])


@pytest.mark.skipif(os.name == "nt", reason="no such signal there")
def test_a_process_that_was_killed_can_begin_again(begin):
    with Process() as process:
        process.ask(begin, Begun)
        first = process.pid
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ProcessEndedError):
            process.ask(PredictSample(), SamplePredicted)
        process.restart()
        assert process.pid != first
        process.ask(begin, Begun)
        assert process.ask(PredictSample(), SamplePredicted).labelled == 45


def test_numbers_of_a_session_alone():
    few = Timing(batch=8, seconds=(0.2, 0.1, 0.4))
    assert few.median_ms == pytest.approx(200)
    assert few.range_ms == pytest.approx((100, 400))
    assert few.images_per_second == pytest.approx(40)
    assert few.percentiles_ms == {}
    many = Timing(batch=1, seconds=tuple(i / 1000 for i in range(1, 201)))
    assert many.percentiles_ms == pytest.approx({90: 180, 95: 190, 99: 198})
