"""The measurement itself: the options take turns, so that noise hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from deploykit.commands.bench.messages import (
    Begin,
    Begun,
    Compute,
    Computed,
    Predict,
    Predicted,
    PredictSample,
    Reply,
    Request,
    SamplePredicted,
)
from deploykit.commands.bench.process import OptionError, Process, ProcessEndedError
from deploykit.commands.bench.results import LeftOut, Option
from deploykit.commands.bench.timings import LEAST_ROUNDS
from deploykit.inference.engines import is_flavour
from deploykit.system.progress import Progress, Step

_Reply = TypeVar("_Reply", bound=Reply)

#: The most that a turn takes where one run takes less; of a short time each turn has its share.
_COMPUTE_SECONDS = 0.25
#: Long against what starting and ending its threads costs a prediction.
_PREDICT_SECONDS = 1.5
_LEAST_PHOTOS = 8


class Asked(Protocol):
    """What measures one option."""

    def ask(self, request: Request, kind: type[_Reply]) -> _Reply:
        """Let it do something, and wait for the answer."""
        ...

    def restart(self) -> None:
        """Be a new one, which nothing has been asked yet."""
        ...


@dataclass
class Contender:
    """An option that is open and has its turns.

    Attributes:
        begin: The option, and the sample.
        process: What measures it.
        first_answer_seconds: From starting its process to one photo's logits.
        begun: What it is.
        sample: What the first prediction of the sample took.
        photos: How many photos a turn predicts.
        latencies: The seconds of each run alone, by batch size.
        refusals: The batch sizes that it could not run, and why.
        rates: The images/s of each prediction.
        restarted: Whether its process ended once, and another one goes on.
    """

    begin: Begin
    process: Asked
    first_answer_seconds: float
    begun: Begun
    sample: SamplePredicted
    photos: int = _LEAST_PHOTOS
    latencies: dict[int, list[float]] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    restarted: bool = False

    @property
    def option(self) -> Option:
        """What it is."""
        return self.begin.option

    def compute(self, batch_sizes: Sequence[int], seconds: float) -> None:
        """Run the session alone, for so long with each batch size that it takes."""
        largest = self.begun.spec.largest_batch
        for batch in batch_sizes:
            if largest is not None and batch > largest:
                self.refusals[batch] = f"it takes at most {largest}"
        taken = tuple(batch for batch in batch_sizes if batch not in self.refusals)
        if not taken:
            return
        try:
            found = self.process.ask(Compute(batches=taken, seconds=seconds), Computed)
        except ProcessEndedError as exc:
            untried = [batch for batch in taken if batch not in self.latencies]
            if self.restarted or not untried:
                raise
            self._restart_without(max(untried), exc)
            self.compute(batch_sizes, seconds)
            return
        self.refusals.update(found.refusals)
        for batch, runs in found.seconds.items():
            self.latencies.setdefault(batch, []).extend(runs)

    def _restart_without(self, batch: int, error: ProcessEndedError) -> None:
        """Go on in another process without a batch size that this one did not survive.

        Where memory runs out Linux ends a process instead of refusing it more.
        """
        self.restarted = True
        self.refusals[batch] = str(error)
        self.process.restart()
        self.process.ask(self.begin, Begun)
        self.process.ask(PredictSample(), SamplePredicted)

    def predict(self) -> None:
        """Predict photos."""
        found = self.process.ask(Predict(images=self.photos), Predicted)
        self.rates.append(self.photos / found.seconds)


@dataclass(frozen=True)
class Schedule:
    """How much is measured.

    Attributes:
        batch_sizes: Of the session alone.
        repeats: The most rounds; None for as many as there is time for.
        seconds: No round begins that would probably end later, but for the first three if there
            may be so many.
    """

    batch_sizes: tuple[int, ...]
    repeats: int | None
    seconds: float


def start_all(
    stack: ExitStack, begins: Iterable[Begin], progress: Progress
) -> tuple[list[Contender], list[LeftOut]]:
    """Start a process for each option, one after the other.

    Args:
        stack: Ends the processes.
        begins: The options.
        progress: Called before each.

    Returns:
        The options that run, and those that cannot.
    """
    contenders, left_out = [], []
    begins = list(begins)
    for place, begin in enumerate(begins):
        progress(Step("starting", place, len(begins), begin.option.name))
        with ExitStack() as own:
            start = time.perf_counter()
            process = own.enter_context(Process())
            try:
                begun = process.ask(begin, Begun)
                first_answer_seconds = time.perf_counter() - start
                sample = process.ask(PredictSample(), SamplePredicted)
            except OptionError as exc:
                left_out.append(_left_out(begin.option, exc))
                continue
            stack.push(own.pop_all())
        contenders.append(Contender(begin, process, first_answer_seconds, begun, sample))
    return contenders, left_out


def _left_out(option: Option, error: OptionError) -> LeftOut:
    return LeftOut(
        option=option,
        reason=str(error),
        exit_code=error.exit_code,
        # An engine may as well be older than its graph, and another be built.
        damaged=error.damaged and not is_flavour(option.runtime),
    )


def take_turns(
    contenders: Sequence[Contender], schedule: Schedule, progress: Progress
) -> tuple[list[Contender], list[LeftOut], int]:
    """Measure round after round; what fails in its turn has no further one.

    Returns:
        The options that came through, those that failed, and the number of rounds.
    """
    going, failed = list(contenders), list[LeftOut]()
    share = schedule.seconds / LEAST_ROUNDS / max(1, len(going)) / (len(schedule.batch_sizes) + 1)
    for contender in going:
        photos = round(min(_PREDICT_SECONDS, share) * contender.sample.images_per_second)
        contender.photos = max(_LEAST_PHOTOS, photos)
    alone = min(_COMPUTE_SECONDS, share)
    turns: list[tuple[str, Callable[[Contender], None]]] = [
        ("alone", lambda contender: contender.compute(schedule.batch_sizes, alone)),
        ("end to end", Contender.predict),
    ]
    start = time.monotonic()
    rounds = 0
    while going and _has_time(schedule, rounds, time.monotonic() - start):
        for what, turn in turns:
            for contender in _rotated(going, rounds):
                detail = f"round {rounds + 1}, {what}: {contender.option.name}"
                progress(Step("measuring", rounds, schedule.repeats, detail))
                try:
                    turn(contender)
                except OptionError as exc:
                    going.remove(contender)
                    failed.append(_left_out(contender.option, exc))
        rounds += 1
    return going, failed, rounds


def _rotated(contenders: Sequence[Contender], rounds: int) -> list[Contender]:
    """Let another one begin in each round, so that nobody always comes after the same one."""
    first = rounds % len(contenders) if contenders else 0
    return [*contenders[first:], *contenders[:first]]


def _has_time(schedule: Schedule, rounds: int, elapsed: float) -> bool:
    """Whether another round can begin: the next takes about as long as those before."""
    if schedule.repeats is not None and rounds >= schedule.repeats:
        return False
    return rounds < LEAST_ROUNDS or elapsed * (rounds + 1) / rounds <= schedule.seconds
