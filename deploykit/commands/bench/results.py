"""What ``bench`` measured: frozen values, from which the recommendation follows."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Literal

from deploykit.bundle.accepted import MachineIdentity
from deploykit.bundle.folder import CANONICAL_GRAPH
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.inference.candidates import Candidate
from deploykit.parity.budget import Budget
from deploykit.proof.policy import Status
from deploykit.runtime.opener import CPU
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import PRECISIONS
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import Shown, Value
from deploykit.system.text import command_line

TORCH = Candidate("checkpoint", "torch", "fp32")
"""The checkpoint's own module: the reference itself."""
PLAIN = Candidate(CANONICAL_GRAPH, CPU, "fp32")
"""The exported graph as it is on ONNX Runtime, opened and run as deploykit runs its own."""
NOTHING_PASSED = "no candidate that predict can take passed on this machine"
#: A lower precision must give so many times the images/s to be called faster.
CLEARLY_FASTER = 1.05


def name_of(candidate: Candidate) -> str:
    """``openvino bf16``, ``onnxruntime-cpu fp32, plain export``."""
    return f"{candidate.runtime} {candidate.precision}" + ", plain export" * (candidate == PLAIN)


class Skipped(Value, frozen=True):
    """A candidate that was not measured.

    Attributes:
        candidate: The candidate.
        reason: Why.
        damaged: Whether a file of the bundle is missing or has changed.
    """

    candidate: Candidate
    reason: str
    damaged: bool = False


class Timing(Value, frozen=True):
    """The runs of a session alone, one at a time.

    Attributes:
        batch: Images a run.
        seconds: Of each run, from images in memory to logits in memory.
    """

    batch: int
    seconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median latency."""
        return 1000 * statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        """At the median latency."""
        return self.batch / statistics.median(self.seconds)


class Measured(Value, frozen=True):
    """A candidate, and what was measured of it.

    Attributes:
        candidate: The candidate.
        spec: What really ran.
        first_answer_seconds: From starting a process to one image's logits; measured once.
        peak_memory_bytes: Of a process that predicts with it; None where the system does not tell.
        timings: Of the session alone, by ascending batch.
        skipped_batches: The batch sizes that it cannot run alone, and why.
        batch_size: The most images that a run of the session took in a prediction.
        rates: The images/s of each prediction, from files to logits; one a round.
        labelled: Images whose classes a table or their folder tells.
        correct: Those of them that it gave exactly these.
        status: Whether it may be trusted; None for the reference itself.
    """

    candidate: Candidate
    spec: SessionSpec
    first_answer_seconds: float
    peak_memory_bytes: int | None
    timings: tuple[Timing, ...]
    skipped_batches: dict[int, str]
    batch_size: int
    rates: tuple[float, ...]
    labelled: int
    correct: int
    status: Status | None = None

    @property
    def name(self) -> str:
        """See :func:`name_of`."""
        return name_of(self.candidate)

    @property
    def word(self) -> str:
        """The word of its status; ``reference`` for the reference itself."""
        return "reference" if self.status is None else self.status.word

    @property
    def proof(self) -> KeptVerdict | None:
        """The verdict that passed, where it is proven or within its budget."""
        return None if self.status is None else self.status.proof

    @property
    def is_deployable(self) -> bool:
        """Whether ``predict`` can take it; the others are only compared with."""
        return self.candidate not in (TORCH, PLAIN)

    @property
    def images_per_second(self) -> float:
        """End to end: the median of the rounds."""
        return statistics.median(self.rates)

    def is_faster_than(self, other: Measured) -> bool:
        """Whether it is faster end to end in every round.

        In a lower precision than the other's it must also be faster by more than 5 %.

        Args:
            other: Another candidate, measured in the same rounds.
        """
        ours, theirs = (PRECISIONS.index(each.candidate.precision) for each in (self, other))
        needed = CLEARLY_FASTER if ours > theirs else 1.0
        return self.images_per_second > needed * other.images_per_second and all(
            ours > theirs for ours, theirs in zip(self.rates, other.rates, strict=True)
        )


class Benchmark(Shown, Value, frozen=True):
    """Every candidate of a machine, side by side.

    Attributes:
        bundle: The bundle's name.
        folder: The bundle.
        machine: Where it was measured.
        images: The folder that the images are from.
        sample: How many of them were predicted, again and again.
        measured: What was measured, the one with the most images/s end to end first.
        skipped: What was not.
        rounds: How often each candidate had its turn.
        starting_seconds: How long it took until all candidates were open and had predicted once.
        seconds: How long all of it took.
        created: When, UTC, ISO 8601.
        versions: Of the packages that took part.
        verified: Whether what had no proof was compared.
        accuracy_word: What the part of the images is called that are given exactly their classes.
        budget: What the user allows below FP32; None for what the precision allows.
    """

    bundle: str
    folder: str
    machine: MachineIdentity
    images: str
    sample: int
    measured: tuple[Measured, ...]
    skipped: tuple[Skipped, ...]
    rounds: int
    starting_seconds: float
    seconds: float
    created: str
    versions: dict[str, str]
    verified: bool = False
    accuracy_word: Literal["accuracy", "exact match"] = "accuracy"
    budget: Budget | None = None

    @property
    def recommended(self) -> Measured | None:
        """The fastest that ``predict`` can take and that is proven or within the budget."""
        return _fastest(self._passed)

    @property
    def proven_instead(self) -> Measured | None:
        """The fastest that is proven, where the recommended one is within its budget."""
        best = self.recommended
        if best is None or best.word == "proven":
            return None
        return _fastest(each for each in self._passed if each.word == "proven")

    @property
    def as_fast(self) -> tuple[Measured, ...]:
        """What passed and had more images/s than the recommended one, but is not faster."""
        best = self.recommended
        return tuple(
            each
            for each in self._passed
            if best is not None and each.images_per_second > best.images_per_second
        )

    @property
    def faster_unproven(self) -> tuple[Measured, ...]:
        """What is faster than the recommended one and unproven; the fastest first.

        With a budget of the user's also what failed, or passed, by another one.
        """
        best = self.recommended
        return tuple(
            each
            for each in self.measured
            if each.is_deployable
            and not self.passed(each)
            and (each.word == "unproven" or self.budget is not None)
            and (best is None or each.is_faster_than(best))
        )

    @property
    def damaged(self) -> tuple[Skipped, ...]:
        """What was skipped because a file of the bundle is missing or has changed."""
        return tuple(each for each in self.skipped if each.damaged)

    @property
    def _passed(self) -> list[Measured]:
        return [each for each in self.measured if each.is_deployable and self.passed(each)]

    def passed(self, measured: Measured) -> bool:
        """Whether a candidate is proven, or changes no more than is allowed."""
        return measured.status is not None and measured.status.is_within(self.budget)

    def times_plain(self, measured: Measured) -> float | None:
        """How many times the images/s of the plain export a candidate gives."""
        plain = next((each for each in self.measured if each.candidate == PLAIN), None)
        return None if plain is None else measured.images_per_second / plain.images_per_second

    def command(self, command: str, *options: str) -> str:
        """A command on this bundle and these images."""
        what = ("--bundle", self.folder, "--images", self.images)
        return command_line(["deploykit", command, *what, *options])

    def how_to_prove(self, measured: Measured) -> str:
        """The command that would prove a candidate."""
        what = measured.candidate
        allowed = () if self.budget is None or what.precision == "fp32" else self.budget.options
        if is_flavour(what.runtime):
            return self.command("verify", "--engine", what.file, *allowed)
        which = ("--runtime", what.runtime, "--precision", what.precision)
        return self.command("verify", *which, *allowed)


def _fastest(measured: Iterable[Measured]) -> Measured | None:
    """The fastest of those in the highest precision that no other one is faster than."""
    among = list(measured)
    return min(
        (each for each in among if not any(other.is_faster_than(each) for other in among)),
        key=lambda each: (PRECISIONS.index(each.candidate.precision), -each.images_per_second),
        default=None,
    )
