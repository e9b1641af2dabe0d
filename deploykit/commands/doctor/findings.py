"""What an examination of this machine finds: single things, and what they add up to."""

from __future__ import annotations

from typing import Literal, TypeAlias

from deploykit.specs.value import Value
from deploykit.system.gpu import Gpu

Status: TypeAlias = Literal["ok", "missing", "broken", "absent-but-fine"]
Task: TypeAlias = Literal["run", "build"]


class Finding(Value, frozen=True):
    """One thing that was looked at.

    Attributes:
        name: What it is called: ``NVIDIA GPU``, ``onnxruntime``, ``extra cuda``.
        status: ``ok``; ``missing``, where this machine has a use for it; ``broken``, when it is
            there and does not work; ``absent-but-fine``, when nothing else here waits for it.
        detail: What was found, in words, with versions and files.
        remedies: What closes the gap, in this order: commands, or an instruction where no command
            does it.
    """

    name: str
    status: Status
    detail: str
    remedies: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it is there and works."""
        return self.status == "ok"


class Ability(Value, frozen=True):
    """Whether this machine can do something with a runtime.

    Attributes:
        runtime: As ``--runtime`` takes it.
        task: ``run`` a graph or an engine, or ``build`` an engine.
        obstacles: What it needs and did not find.
        note: What to know although it works; empty for nothing.
    """

    runtime: str
    task: Task
    obstacles: tuple[Finding, ...]
    note: str = ""

    @property
    def works(self) -> bool:
        """Whether nothing is in the way."""
        return not self.obstacles


class Machine(Value, frozen=True):
    """What this machine is.

    Attributes:
        system: The operating system with its version.
        python: Python's version.
        executable: The Python program, which tells the environment.
        processor: The CPU's name.
        cores: How many logical cores this process may use.
        instruction_sets: Those that decide how fast FP32, BF16 and INT8 are; None where the system
            does not tell.
        memory_bytes: All of the machine's memory; None where the system does not tell.
        gpu: GPU 0; None where there is none to use.
        driver_version: NVIDIA's, ``580.65.06``; None without ``nvidia-ml-py``.
        gpu_memory_bytes: All of the GPU's memory; None without ``nvidia-ml-py``.
    """

    system: str
    python: str
    executable: str
    processor: str
    cores: int
    instruction_sets: tuple[str, ...] | None
    memory_bytes: int | None
    gpu: Gpu | None
    driver_version: str | None
    gpu_memory_bytes: int | None
