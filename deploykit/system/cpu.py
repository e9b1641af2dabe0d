"""This machine's CPU, and which of its instruction sets change the answers of BF16 and INT8."""

from __future__ import annotations

import platform
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
#: What matters of x86 and of ARM, as Linux spells it.
_INSTRUCTION_SETS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)
#: The instruction sets whose kernels give different answers below FP32, the one that is taken
#: first. INT8 without VNNI may saturate its 16-bit sums; AMX adds up in another order.
_DECISIVE = {
    "bf16": ("amx_bf16", "avx512_bf16", "bf16"),
    "int8": (
        *("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2"),
        *("i8mm", "asimddp"),
    ),
}
_X86 = frozenset({"amd64", "x86_64", "i386", "i686", "x86"})
#: x86's other INT8 instructions add up pairs of products in 16 bits.
_EXACT_SUMS = ("avx_vnni", "avx512_vnni", "amx_int8")


@dataclass(frozen=True)
class Cpu:
    """The CPU.

    Attributes:
        name: ``AMD EPYC``.
        instruction_sets: Those that decide how fast FP32, BF16 and INT8 are, and what the latter
            two compute; None where the system does not tell.
    """

    name: str
    instruction_sets: tuple[str, ...] | None


def read_cpu() -> Cpu:
    """This machine's CPU, as proofs and predictions need it: in less than a millisecond.

    Only Linux tells all of the instruction sets. On other systems they are None, because those
    that :func:`describe_cpu` finds are too few for a proof to rest on.
    """
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    fields = dict(re.findall(r"^(model name|flags|Features)\s*: (.*)$", text, re.MULTILINE))
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags") or fields.get("Features")  # x86, ARM
    return Cpu(name, None if flags is None else _those_that_matter(flags.split()))


def describe_cpu() -> Cpu:
    """This machine's CPU, for people: on every system, but in a second or two outside Linux.

    There, py-cpuinfo finds neither avx_vnni nor avx512_bf16 nor AMX.
    """
    cpu = read_cpu()
    if cpu.instruction_sets is not None:
        return cpu
    import cpuinfo

    found = cpuinfo.get_cpu_info()  # it starts a process of its own
    flags = [flag.replace("avx512vnni", "avx512_vnni") for flag in found.get("flags", ())]
    return Cpu(found.get("brand_raw") or cpu.name, _those_that_matter(flags) if flags else None)


def _those_that_matter(flags: Collection[str]) -> tuple[str, ...]:
    return tuple(each for each in _INSTRUCTION_SETS if each in flags)


def cpu_device(precision: str) -> str:
    """The CPU as what a proof in a precision rests on.

    Returns:
        ``CPU`` where any CPU gives the same answers within the tolerance: in FP32. Else with the
        instruction set that the kernels use, ``CPU (avx512_bf16)``, or the CPU's name where the
        system does not tell that.
    """
    if precision not in _DECISIVE:
        return "CPU"
    cpu = read_cpu()
    usable = (each for each in _DECISIVE[precision] if each in (cpu.instruction_sets or ()))
    return f"CPU ({next(usable, cpu.name)})"


def saturates_int8(cpu: Cpu) -> bool:
    """Whether sums of INT8 products may saturate: x86 without VNNI or AMX adds them up in 16 bits.

    An ARM CPU adds them up in 32. Of an x86 CPU whose system does not tell, as on Windows, they
    may.
    """
    is_exact = not frozenset(cpu.instruction_sets or ()).isdisjoint(_EXACT_SUMS)
    return platform.machine().lower() in _X86 and not is_exact
