"""A process that ends while it measures: it goes on in another one, once."""

import pytest
from bench_runs import BEGUN, ORT, SAMPLE, contender_of

from deploykit.commands.bench.messages import (
    Begun,
    Compute,
    Computed,
    Predicted,
    PredictSample,
    SamplePredicted,
)
from deploykit.commands.bench.process import ProcessEndedError
from deploykit.commands.bench.rounds import Schedule, take_turns
from deploykit.system.progress import silent


class Dying:
    """Ends where a batch is larger than what memory holds, which is less each time; then anew."""

    def __init__(self, *memories):
        self.memories, self.asked = [*memories], []

    def restart(self):
        self.asked.append("restart")
        del self.memories[0]

    def ask(self, request, kind):
        self.asked.append(request)
        if isinstance(request, Compute):
            if max(request.batches) > self.memories[0]:
                raise ProcessEndedError("its process ended with exit code -9: memory runs out")
            return Computed(seconds=dict.fromkeys(request.batches, (0.5,)), refusals={})
        answers = {Begun: BEGUN, SamplePredicted: SAMPLE, Predicted: Predicted(seconds=2.0)}
        return answers[kind]


def test_a_process_that_a_batch_size_ends_goes_on_without_it():
    process = Dying(2, 2)
    contender = contender_of(ORT, process)
    schedule = Schedule(batch_sizes=(1, 2, 4), repeats=3, seconds=60.0)
    going, failed, _ = take_turns([contender], schedule, silent)
    assert (going, failed) == ([contender], [])
    assert contender.refusals == {4: "its process ended with exit code -9: memory runs out"}
    assert contender.latencies == {1: [0.5] * 3, 2: [0.5] * 3}
    assert len(contender.rates) == 3
    again = process.asked[process.asked.index("restart") + 1 :]
    assert again[:2] == [contender.begin, PredictSample()]  # open and warm, as before


def test_a_process_that_ends_again_is_left_out():
    contender = contender_of(ORT, Dying(3, 1))
    schedule = Schedule(batch_sizes=(1, 2, 4), repeats=3, seconds=60.0)
    going, (failed,), _ = take_turns([contender], schedule, silent)
    assert going == []
    assert "exit code -9" in failed.reason


def test_a_process_that_ends_at_what_it_has_run_before_is_left_out():
    process = Dying(4, 4)
    contender = contender_of(ORT, process)
    contender.compute((1, 2), 0.1)
    process.memories[0] = 1
    with pytest.raises(ProcessEndedError):
        contender.compute((1, 2), 0.1)
    assert "restart" not in process.asked
