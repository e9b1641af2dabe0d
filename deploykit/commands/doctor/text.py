"""What ``doctor`` found, as text for a terminal and as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from deploykit.commands.doctor.findings import Ability, Finding, Machine
from deploykit.commands.doctor.run import Examination
from deploykit.system.text import table_text

_ABILITY_COLUMNS = ("runtime", "task", "verdict", "why")
_FINDING_COLUMNS = ("looked at", "status", "found", "to mend")


def examination_text(examination: Examination) -> str:
    """The machine, a verdict for each runtime, and all that was looked at."""
    abilities = (_ability_row(ability) for ability in examination.abilities)
    findings = (row for finding in examination.findings for row in _finding_rows(finding))
    return "\n\n".join(
        (
            "\n".join(_machine_lines(examination.machine)),
            table_text(_ABILITY_COLUMNS, abilities),
            table_text(_FINDING_COLUMNS, findings),
        )
    )


def examination_value(examination: Examination) -> dict[str, Any]:
    """The same for ``--json``, with the verdicts that follow from the obstacles."""
    value: dict[str, Any] = msgspec.to_builtins(examination)
    for ability, given in zip(examination.abilities, value["abilities"], strict=True):
        given["works"] = ability.works
    return value


def _machine_lines(machine: Machine) -> Iterator[str]:
    yield f"system  {machine.system}"
    yield f"python  {machine.python}, {machine.executable}"
    if machine.instruction_sets is None:
        instruction_sets = "its instruction sets are not told here"
    else:
        instruction_sets = " ".join(machine.instruction_sets) or "none that matters"
    yield f"cpu     {machine.processor}, {machine.cores} cores; {instruction_sets}"
    yield f"memory  {_gibibytes(machine.memory_bytes)}"
    gpu = machine.gpu
    if gpu is None:
        yield "gpu     none that can be used"
        return
    major, minor = gpu.compute_capability
    yield (
        f"gpu     {gpu.name}, compute capability {major}.{minor} (--target {gpu.target}), "
        f"memory {_gibibytes(machine.gpu_memory_bytes)}"
    )
    major, minor = gpu.cuda_version
    yield f"driver  {machine.driver_version or 'version not known'}, CUDA up to {major}.{minor}"


def _ability_row(ability: Ability) -> tuple[str, ...]:
    """The verdict, and the names of what is in the way: the other table tells more of each."""
    if ability.works:
        return (ability.runtime, ability.task, "works", ability.note)
    names = ", ".join(finding.name for finding in ability.obstacles)
    return (ability.runtime, ability.task, "cannot", f"for want of: {names}")


def _finding_rows(finding: Finding) -> Iterator[tuple[str, ...]]:
    """What was found with its first remedy, and a row for each further one."""
    first, *further = finding.remedies or ("",)
    yield (finding.name, finding.status, finding.detail, first)
    for remedy in further:
        yield ("", "", "", remedy)


def _gibibytes(size: int | None) -> str:
    return "not known" if size is None else f"{size / 2**30:.1f} GiB"
