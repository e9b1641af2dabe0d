"""What ``bench --accept`` keeps in a manifest: which candidate was chosen, on which machine."""

from __future__ import annotations

from typing import Literal

from deploykit.parity.budget import Budget
from deploykit.specs.model import Precision
from deploykit.specs.value import Value
from deploykit.system.deps import version_changes


class MachineIdentity(Value, frozen=True):
    """What decides which candidate is the fastest: on another machine it may be another.

    Attributes:
        cpu: The CPU's name.
        cpus: How many of its threads can be kept busy.
        instruction_sets: Those that matter; empty where the system does not tell.
        gpu: GPU 0's name; None without one.
        versions: Of the installed runtimes, which change while the machine stays the same.
    """

    cpu: str
    cpus: int
    instruction_sets: tuple[str, ...]
    gpu: str | None
    versions: dict[str, str]

    @property
    def hardware(self) -> tuple[object, ...]:
        """All but what is installed."""
        return self.cpu, self.cpus, self.instruction_sets, self.gpu

    def distance_to(self, now: MachineIdentity) -> tuple[bool, int]:
        """What puts machines in order, the nearest first: the same hardware, then few changes."""
        return self.hardware != now.hardware, len(self.changes_to(now))

    def changes_to(self, now: MachineIdentity) -> list[str]:
        """What is otherwise on another machine, or on this one later: ``openvino was 1, now 2``."""
        changes = []
        if (self.cpu, self.instruction_sets) != (now.cpu, now.instruction_sets):
            changes.append(f"the CPU was {self._cpu_words()}, now {now._cpu_words()}")
        if self.cpus != now.cpus:
            changes.append(f"{self.cpus} threads could compute, now {now.cpus}")
        if self.gpu != now.gpu:
            changes.append(f"the GPU was {self.gpu or 'none'}, now {now.gpu or 'none'}")
        return changes + version_changes(self.versions, now.versions)

    def _cpu_words(self) -> str:
        return f"{self.cpu} ({' '.join(self.instruction_sets)})"


class Accepted(Value, frozen=True):
    """The candidate that a user chose for a machine.

    Attributes:
        machine: Where it was measured.
        file: The graph or engine, relative to the bundle.
        sha256: That file's when it was measured, in lowercase hex.
        runtime: What executes it.
        precision: The precision of its arithmetic.
        status: Its status when it was accepted: ``predict`` takes nothing worse.
        images_per_second: What it gave end to end.
        created: When, UTC, ISO 8601.
        budget: What the user allowed it to change; None for what its precision allows.
    """

    machine: MachineIdentity
    file: str
    sha256: str
    runtime: str
    precision: Precision
    status: Literal["proven", "within budget"]
    images_per_second: float
    created: str
    budget: Budget | None = None

    def __str__(self) -> str:
        return f"{self.file} in {self.precision} on {self.runtime}"
