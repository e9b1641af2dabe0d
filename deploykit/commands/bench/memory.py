"""The most memory that this process has had."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import ClassVar

_STATUS = Path("/proc/self/status")


def peak_memory_bytes() -> int | None:
    """The peak of this process's resident memory; None where the system does not tell."""
    if sys.platform == "win32":
        return _windows_peak()
    elif sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there
    else:
        # On Linux ru_maxrss begins with what the parent had; VmHWM is the process's own.
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="utf-8"))
        return 1024 * int(found[1]) if found else None


def _windows_peak() -> int | None:
    """``PeakWorkingSetSize`` of ``PROCESS_MEMORY_COUNTERS``, Windows API reference, "psapi.h"."""

    class Counters(ctypes.Structure):
        _fields_: ClassVar = [
            ("size", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            ("peak_working_set", ctypes.c_size_t),
            ("rest", ctypes.c_size_t * 7),
        ]

    counters = Counters(size=ctypes.sizeof(Counters))
    kernel = ctypes.CDLL("kernel32.dll")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    process = kernel.GetCurrentProcess()
    if not kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size):
        return None
    return int(counters.peak_working_set)
