"""What ``bench`` measured: frozen values, from which the recommendation follows."""

from __future__ import annotations

import statistics
from typing import Literal, TypeAlias

from deploykit.bundle.accepted import MachineIdentity
from deploykit.bundle.folder import CANONICAL_GRAPH
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.errors import MissingError
from deploykit.inference.candidates import Candidate
from deploykit.runtime.opener import CPU
from deploykit.specs.model import PRECISIONS, Precision
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import Value
from deploykit.system.text import command_line

TORCH = "torch"
CHECKPOINT = "checkpoint"
#: A lower precision must give so many times the images/s to be called faster.
CLEARLY_FASTER = 1.05

Standing: TypeAlias = Literal["proven", "flips", "failed", "unproven", "reference"]
"""Whether an option decides as the reference does: ``proven`` by an executed proof on photos, by
the installed version of the runtime, without a decidable flip; ``flips``: within tolerance, with
some; ``failed``: a comparison, just now or before, broke the tolerance; ``unproven``; or the
``reference`` itself."""


class Option(Value, frozen=True):
    """One way to run a bundle.

    Attributes:
        file: Relative to the bundle; ``checkpoint`` for the torch module itself.
        runtime: What executes it.
        precision: The precision of its arithmetic.
    """

    file: str
    runtime: str
    precision: Precision

    @property
    def is_deployable(self) -> bool:
        """Whether ``predict`` can take it; the others are only compared with."""
        return self.file not in (CHECKPOINT, CANONICAL_GRAPH)

    @property
    def name(self) -> str:
        """What reports call it: ``openvino bf16``, ``onnxruntime-cpu fp32, plain export``."""
        plain = ", plain export" if self.file == CANONICAL_GRAPH else ""
        return f"{self.runtime} {self.precision}{plain}"

    @property
    def candidate(self) -> Candidate:
        """The same, as what is verified and chosen."""
        return Candidate(self.file, self.runtime, self.precision)


PLAIN = Option(file=CANONICAL_GRAPH, runtime=CPU, precision="fp32")
"""The exported graph as it is on ONNX Runtime, opened and run as deploykit runs its own."""


class Skipped(Value, frozen=True):
    """An option that was not measured.

    Attributes:
        option: The option.
        reason: Why.
        exit_code: Of a command that needs this option.
        damaged: Whether a file of the bundle is missing or has changed.
    """

    option: Option
    reason: str
    exit_code: int = MissingError.exit_code
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
    def range_ms(self) -> tuple[float, float]:
        """The shortest and the longest latency."""
        return 1000 * min(self.seconds), 1000 * max(self.seconds)

    @property
    def images_per_second(self) -> float:
        """At the median latency."""
        return self.batch / statistics.median(self.seconds)


class Measured(Value, frozen=True):
    """An option, and what was measured of it.

    Attributes:
        option: The option.
        spec: What really ran.
        first_answer_seconds: From starting a process to one photo's logits; measured once.
        peak_memory_bytes: Of a process that predicts with it; None where the system does not tell.
        timings: Of the session alone, by ascending batch.
        refusals: The batch sizes that it cannot run alone, and why.
        batch_size: The most photos that a run of the session took in a prediction.
        rates: The images/s of each prediction, from photo files to logits; one a round.
        labelled: Photos whose class their folder tells.
        correct: Those of them that it answered rightly.
        standing: Whether it decides as the reference does.
        proof: What shows that; None without.
        reasons: Why it failed, or why what there is proves nothing here.
        outdated: Whether it is not proven only because its runtime has another version now.
    """

    option: Option
    spec: SessionSpec
    first_answer_seconds: float
    peak_memory_bytes: int | None
    timings: tuple[Timing, ...]
    refusals: dict[int, str]
    batch_size: int
    rates: tuple[float, ...]
    labelled: int
    correct: int
    standing: Standing = "unproven"
    proof: KeptVerdict | None = None
    reasons: tuple[str, ...] = ()
    outdated: bool = False

    @property
    def images_per_second(self) -> float:
        """End to end: the median of the rounds."""
        return statistics.median(self.rates)

    def is_faster_than(self, other: Measured) -> bool:
        """Whether it is faster end to end in every round.

        In a lower precision than the other's it must also be faster by more than 5 %.

        Args:
            other: Another option, measured in the same rounds.
        """
        lower = PRECISIONS.index(self.option.precision) > PRECISIONS.index(other.option.precision)
        needed = CLEARLY_FASTER if lower else 1.0
        return self.images_per_second > needed * other.images_per_second and all(
            ours > theirs for ours, theirs in zip(self.rates, other.rates, strict=True)
        )


class Benchmark(Value, frozen=True):
    """Every option of a machine, side by side.

    Attributes:
        bundle: The bundle's name.
        folder: The bundle.
        machine: Where it was measured.
        photos: The folder that the photos are from.
        sample: How many of them were predicted, again and again.
        options: What was measured, in the order of the options.
        skipped: What was not.
        rounds: How often each option had its turn.
        seconds: How long all of it took.
        created: When, UTC, ISO 8601.
        versions: Of the packages that took part.
        verified: Whether what had no proof was compared.
        obstacle: Why nothing could be proven, whatever the option.
    """

    bundle: str
    folder: str
    machine: MachineIdentity
    photos: str
    sample: int
    options: tuple[Measured, ...]
    skipped: tuple[Skipped, ...]
    rounds: int
    seconds: float
    created: str
    versions: dict[str, str]
    verified: bool = False
    obstacle: str | None = None

    @property
    def ranked(self) -> tuple[Measured, ...]:
        """The options, the one with the most images/s end to end first."""
        return tuple(sorted(self.options, key=lambda each: -each.images_per_second))

    @property
    def recommended(self) -> Measured | None:
        """The fastest that is proven and that ``predict`` can take.

        Of those that no other is faster than, the one in the highest precision, and of these the
        one with the most images/s.
        """
        proven = self._proven
        return min(
            (each for each in proven if not any(other.is_faster_than(each) for other in proven)),
            key=lambda each: (PRECISIONS.index(each.option.precision), -each.images_per_second),
            default=None,
        )

    @property
    def as_fast(self) -> tuple[Measured, ...]:
        """What is proven and had more images/s than the recommended one, but is not faster."""
        best = self.recommended
        return tuple(
            each
            for each in self._proven
            if best is not None and each.images_per_second > best.images_per_second
        )

    @property
    def faster_unproven(self) -> tuple[Measured, ...]:
        """What is faster than the recommended one and not proven; the fastest first."""
        best = self.recommended
        return tuple(
            each
            for each in self.ranked
            if each.option.is_deployable
            and each.standing == "unproven"
            and (best is None or each.is_faster_than(best))
        )

    @property
    def why_nothing(self) -> str:
        """Why nothing is recommended."""
        if any(each.outdated and each.option.is_deployable for each in self.options):
            return "nothing is proven by the versions that are installed now"
        return "no option that predict can take is proven on this machine"

    @property
    def damaged(self) -> tuple[Skipped, ...]:
        """What was skipped because a file of the bundle is missing or has changed."""
        return tuple(each for each in self.skipped if each.damaged)

    @property
    def _proven(self) -> list[Measured]:
        return [m for m in self.ranked if m.standing == "proven" and m.option.is_deployable]

    def times_plain(self, measured: Measured) -> float | None:
        """How many times the images/s of the plain export an option gives."""
        plain = next((each for each in self.options if each.option == PLAIN), None)
        return None if plain is None else measured.images_per_second / plain.images_per_second

    def command(self, *options: str) -> str:
        """The command that measures this again, with further options."""
        return command_line(["deploykit", "bench", *self.what_words, *options])

    @property
    def what_words(self) -> tuple[str, ...]:
        """The options of a command that name this bundle and these photos."""
        return ("--bundle", self.folder, "--images", self.photos)
