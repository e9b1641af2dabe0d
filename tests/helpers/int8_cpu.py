"""What this CPU does to INT8, for tests of its answers."""

import pytest

from deploykit.system.cpu import read_cpu, saturates_int8

#: uint8 times int8 needs VNNI or AMX: without, x86 adds up pairs of products in 16 bits.
needs_exact_int8 = pytest.mark.skipif(
    saturates_int8(read_cpu()), reason="sums of INT8 products saturate on this CPU: no VNNI"
)
