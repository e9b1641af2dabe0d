"""Which machine this is, as far as it decides which option is the fastest."""

from __future__ import annotations

from deploykit.accepted import MachineIdentity
from deploykit.cpu import read_cpu
from deploykit.gpu import find_gpu
from deploykit.jobs.verdicts import installed_versions
from deploykit.proofs import RUNTIME_PACKAGES
from deploykit.threads import usable_cpus


def this_machine() -> MachineIdentity:
    """This machine."""
    cpu, gpu = read_cpu(), find_gpu()
    return MachineIdentity(
        cpu=cpu.name,
        cpus=usable_cpus(),
        instruction_sets=cpu.instruction_sets or (),
        gpu=None if gpu is None else gpu.name,
        versions={name: v for name, v in installed_versions().items() if name in RUNTIME_PACKAGES},
    )
