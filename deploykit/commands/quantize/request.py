"""What to quantize, for what, and which options make no sense together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploykit.bundle.folder import Bundle
from deploykit.commands.quantize.fp16 import FP16
from deploykit.commands.quantize.int8 import FOR_TENSORRT, ON_AVX2, ON_CPU
from deploykit.commands.quantize.strategy import CpuKind, Scheme
from deploykit.errors import UsageError
from deploykit.parity.budget import Budget
from deploykit.specs.model import Precision
from deploykit.specs.value import choice
from deploykit.system.cpu import read_cpu, saturates_int8

SEARCH_SECONDS = 300.0
#: What the graph for CPUs can be made for.
INT8_RUNTIMES = ON_CPU.runtimes
#: Which CPUs it can be made for.
CPU_KINDS: tuple[CpuKind | Literal["any"], ...] = ("vnni", "avx2", "any")
#: What is made for a precision, in this order.
SCHEMES: dict[Precision, tuple[Scheme, ...]] = {
    "fp16": (FP16,),
    "int8": (ON_CPU, ON_AVX2, FOR_TENSORRT),
}


@dataclass(frozen=True)
class QuantizeRequest:
    """The arguments of :func:`deploykit.quantize`.

    Attributes:
        cpu: What kind of CPU the INT8 graph is for, "any" for a graph each; None for this one's.
        graphs: Which of the precision's graphs to make, by their paths in the bundle; empty for
            all.
        expected: A table of the images' classes; None for what their folders tell.
        budget: What the user allows; None for what the precision allows.
        asked_by: Another command that makes graphs on its way, and its own options, as words of a
            shell: ``build-trt``, ``--target``, ``sm89``; empty for ``quantize`` itself.
    """

    precision: Precision = "int8"
    images: Path | None = None
    search_seconds: float = SEARCH_SECONDS
    runtime: str | None = None
    cpu: CpuKind | Literal["any"] | None = None
    graphs: tuple[str, ...] = ()
    diagnose: bool = True
    expected: Path | None = None
    budget: Budget | None = None
    asked_by: tuple[str, ...] = ()

    def command(self, bundle: Bundle, budget: Budget) -> str:
        """The command that was run, within another budget."""
        verb, *own = self.asked_by or ("quantize",)
        words: dict[str, object] = {
            "--precision": self.precision,
            "--images": self.images,
            "--expected": self.expected,
            "--runtime": self.runtime,
            "--for": self.cpu,
            "--search-seconds": f"{self.search_seconds:g}"
            if self.search_seconds != SEARCH_SECONDS
            else None,
        }
        options = [str(word) for each in words.items() if each[1] is not None for word in each]
        switches = () if self.diagnose else ("--no-diagnose",)
        return bundle.command(verb, *own, *options, *switches, *budget.options)

    def schemes(self) -> tuple[Scheme, ...]:
        """What is to be made.

        Raises:
            UsageError: There is no such precision, runtime or graph, or the precision's graph is
                for no CPU; or the search has less than no time.
        """
        precision = choice(self.precision, tuple(SCHEMES), "precision to quantize to")
        if not self.search_seconds >= 0:
            raise UsageError(f"--search-seconds must be at least 0; got {self.search_seconds:g}.")
        if precision != "int8" and (self.runtime, self.cpu) != (None, None):
            raise UsageError(
                "--runtime and --for choose what the INT8 graph for CPUs is made for; the "
                f"{precision.upper()} graph is made for GPUs.",
                hint="Leave them out, or make --precision int8.",
            )
        if self.runtime is not None:
            choice(self.runtime, INT8_RUNTIMES, "runtime for INT8 on CPUs")
        if self.cpu is not None:
            choice(self.cpu, CPU_KINDS, "kind of CPU")
        for graph in self.graphs:
            choice(graph, tuple(each.graph for each in SCHEMES[precision]), f"{precision} graph")
        here: CpuKind = "avx2" if saturates_int8(read_cpu()) else "vnni"
        cpus = {None, self.cpu or here}
        made = [
            each
            for each in SCHEMES[precision]
            if (each.graph in self.graphs if self.graphs else self.cpu == "any" or each.cpu in cpus)
        ]
        # The first must pass, the others may fail: of CPUs this one comes first.
        return tuple(sorted(made, key=lambda each: (each.cpu is None, each.cpu != here)))
