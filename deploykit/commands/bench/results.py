"""What ``bench`` found: frozen values, from which the recommendation follows."""

from __future__ import annotations

from typing import Literal, TypeAlias

from deploykit.bundle.accepted import MachineIdentity
from deploykit.bundle.folder import CANONICAL_GRAPH
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.bench.timings import LEAST_ROUNDS, EndToEnd, Timing
from deploykit.errors import MissingError
from deploykit.inference.candidates import Candidate
from deploykit.runtime.opener import CPU
from deploykit.specs.precision import PRECISIONS, Precision
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import Value
from deploykit.system.shell import command_line

TORCH = "torch"
CHECKPOINT = "checkpoint"

Standing: TypeAlias = Literal["proven", "flips", "failed", "unproven", "reference"]
"""Whether an option decides as the reference does: ``proven`` by an executed proof on photos, by
the runtime as it is installed, without a decidable flip; ``flips``, by one within the tolerance
that has some; ``failed``, because a comparison, just now or before, broke the tolerance;
``unproven``; or the ``reference`` itself."""


class Option(Value, frozen=True):
    """One way to run a bundle.

    Attributes:
        file: Relative to the bundle; ``checkpoint`` for the torch module itself.
        runtime: What executes it.
        precision: The precision of its arithmetic.
        channels_last: Whether torch keeps an image's channels together in memory.
    """

    file: str
    runtime: str
    precision: Precision
    channels_last: bool = False

    @property
    def is_deployable(self) -> bool:
        """Whether ``predict`` can take it; the others are there to be compared with."""
        return self.file not in (CHECKPOINT, CANONICAL_GRAPH)

    @property
    def name(self) -> str:
        """What reports call it: ``openvino bf16``, ``onnxruntime-cpu fp32, plain export``."""
        if self.runtime == TORCH:
            return f"torch {self.precision}, {'channels-last' if self.channels_last else 'eager'}"
        plain = ", plain export" if self.file == CANONICAL_GRAPH else ""
        return f"{self.runtime} {self.precision}{plain}"

    @property
    def candidate(self) -> Candidate:
        """The same, as what is verified and chosen."""
        return Candidate(self.file, self.runtime, self.precision)


PLAIN = Option(file=CANONICAL_GRAPH, runtime=CPU, precision="fp32")
"""The exported graph on ONNX Runtime as it is, opened and run as deploykit runs its own."""


class LeftOut(Value, frozen=True):
    """An option that was not measured.

    Attributes:
        option: The option.
        reason: Why.
        exit_code: What a command that needs it ends with: for want of something this machine does
            not have, or because the bundle is damaged.
        damaged: Whether a file of the bundle is missing or has changed.
    """

    option: Option
    reason: str
    exit_code: int = MissingError.exit_code
    damaged: bool = False


class Measured(Value, frozen=True):
    """An option, and what was measured of it.

    Attributes:
        option: The option.
        spec: What really ran.
        first_answer_seconds: From starting a process to one photo's logits; one measurement.
        peak_memory_bytes: Of a process that predicts with it; None where the system does not tell.
        timings: Of the session alone, by ascending batch.
        refusals: The batch sizes that it cannot run alone, and why.
        end_to_end: With reading and decoding.
        labelled: Photos whose class their folder tells.
        correct: Those of them that it answered rightly.
        standing: Whether it decides as the reference does.
        proof: What shows that; None without.
        objections: Why it failed, or why what there is proves nothing here.
        outdated: Whether it is not proven only because its runtime has another version now.
    """

    option: Option
    spec: SessionSpec
    first_answer_seconds: float
    peak_memory_bytes: int | None
    timings: tuple[Timing, ...]
    end_to_end: EndToEnd
    labelled: int
    correct: int
    standing: Standing
    proof: KeptVerdict | None = None
    objections: tuple[str, ...] = ()
    outdated: bool = False
    refusals: dict[int, str] = {}  # noqa: RUF012  # msgspec copies it

    @property
    def images_per_second(self) -> float:
        """End to end."""
        return self.end_to_end.images_per_second

    def is_faster_than(self, other: Measured) -> bool:
        """Whether it is more than chance that it has more images/s end to end."""
        return self.end_to_end.is_faster_than(other.end_to_end)


class Benchmark(Value, frozen=True):
    """Every option of a machine, side by side.

    Attributes:
        bundle: The bundle's name.
        folder: The bundle.
        machine: Where it was measured.
        photos: The folder that the photos are from.
        sample: How many of them were predicted, again and again.
        options: What was measured, in the order of the options.
        left_out: What cannot run here.
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
    left_out: tuple[LeftOut, ...]
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
        """The fastest end to end that is proven and that a prediction can take.

        Of those that no proven one is faster than, as far as the rounds tell, the one in the
        highest precision, and of these the one with the most images/s.
        """
        proven = self._proven
        return min(
            (each for each in proven if not any(other.is_faster_than(each) for other in proven)),
            key=lambda each: (PRECISIONS.index(each.option.precision), -each.images_per_second),
            default=None,
        )

    @property
    def as_fast(self) -> tuple[Measured, ...]:
        """What is proven and had more images/s than the recommended one, but not clearly."""
        recommended = self.recommended
        return tuple(
            each
            for each in self._proven
            if recommended is not None and each.images_per_second > recommended.images_per_second
        )

    @property
    def faster_unproven(self) -> tuple[Measured, ...]:
        """What is faster than the recommended one and not proven; the fastest first."""
        recommended = self.recommended
        return tuple(
            each
            for each in self.ranked
            if each.option.is_deployable
            and each.standing == "unproven"
            and (recommended is None or each.is_faster_than(recommended))
        )

    @property
    def why_nothing(self) -> str:
        """What is the matter where nothing is recommended."""
        if any(each.outdated and each.option.is_deployable for each in self.options):
            return "by the versions that are installed now nothing is proven"
        return "no option that predict can take is proven on this machine"

    @property
    def tells_apart(self) -> bool:
        """Whether there were rounds enough to tell which option is faster."""
        return self.rounds >= LEAST_ROUNDS

    @property
    def damaged(self) -> tuple[LeftOut, ...]:
        """What was not measured because a file of the bundle is missing or has changed."""
        return tuple(each for each in self.left_out if each.damaged)

    @property
    def missing(self) -> tuple[LeftOut, ...]:
        """What was not measured for any other reason."""
        return tuple(each for each in self.left_out if not each.damaged)

    @property
    def _proven(self) -> list[Measured]:
        return [m for m in self.ranked if m.standing == "proven" and m.option.is_deployable]

    @property
    def plain(self) -> Measured | None:
        """The plain export on ONNX Runtime, which the others are compared with."""
        return next((each for each in self.options if each.option == PLAIN), None)

    def times_plain(self, measured: Measured) -> float | None:
        """How many times the plain export's images/s an option gives."""
        plain = self.plain
        return None if plain is None else measured.images_per_second / plain.images_per_second

    def command(self, *options: str) -> str:
        """The command that measures this again, with further options."""
        return command_line(["deploykit", "bench", *self.what_words, *options])

    @property
    def what_words(self) -> tuple[str, ...]:
        """The options of a command that name this bundle and these photos."""
        return ("--bundle", self.folder, "--images", self.photos)
