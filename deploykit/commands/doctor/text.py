"""What ``doctor`` found, as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from deploykit.commands.doctor.run import Examination
from deploykit.engine.passport import COMPUTE_CAPABILITIES
from deploykit.system.text import table_text

_WIDTH = 90


def examination_text(examination: Examination) -> str:
    """The machine, then a row for all that was tried, with its remedy on lines of their own."""
    rows: list[tuple[str, str, str]] = []
    for finding in examination.findings:
        is_optional = finding.status == "not installed"
        first, *more = (
            *(textwrap.wrap(finding.detail, _WIDTH, break_long_words=False) or [""]),
            *(f"-> {remedy}" for remedy in finding.remedy.splitlines()),
        )
        rows.append(
            (finding.name, "not installed (optional)" if is_optional else finding.status, first)
        )
        rows += [("", "", line) for line in more]
    table = table_text(("tried", "status", "found"), rows)
    return "\n".join((*_machine_lines(examination), "", table))


def _machine_lines(examination: Examination) -> Iterator[str]:
    machine = examination.machine
    sets = machine.instruction_sets
    yield f"system    {machine.system}"
    yield f"python    {machine.executable}"
    yield (
        f"cpu       {machine.cpu}, {machine.cores} cores, "
        f"{'instruction sets unknown' if sets is None else ' '.join(sets) or 'no AVX2'}"
    )
    yield f"memory    {machine.memory_bytes / 2**30:.1f} GiB"
    gpu = machine.gpu
    if gpu is not None:
        capability = ".".join(map(str, gpu.compute_capability))
        cuda = ".".join(map(str, gpu.cuda_version))
        target = f" (--target {gpu.target})" if gpu.target in COMPUTE_CAPABILITIES else ""
        yield f"gpu       {gpu.name}, compute capability {capability}{target}, CUDA up to {cuda}"
    yield from (f"driver    {line}" for line in machine.nvidia_smi)
    versions = (f"{name} {version}" for name, version in examination.versions.items())
    yield f"versions  {', '.join(versions)}"
