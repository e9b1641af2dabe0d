"""Which machine this is, as far as it decides which option is the fastest."""

from __future__ import annotations

from deploykit.bundle.accepted import MachineIdentity
from deploykit.system.cpu import read_cpu
from deploykit.system.deps import RUNTIME_PACKAGES, installed_versions
from deploykit.system.gpu import find_gpu
from deploykit.system.threads import usable_cpus


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
