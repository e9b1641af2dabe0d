"""The most memory that a process has had; in a fresh one, for an earlier test may have had more."""

import subprocess
import sys

import pytest

from deploykit.commands.bench.memory import peak_memory_bytes

GROW = """
from deploykit.commands.bench.memory import peak_memory_bytes
before = peak_memory_bytes()
taken = bytearray(b"x") * 200_000_000
grown = peak_memory_bytes()
del taken
print(grown - before, peak_memory_bytes() - grown)
"""


@pytest.mark.skipif(peak_memory_bytes() is None, reason="this system does not tell")
def test_the_peak_grows_with_what_is_taken_and_stays():
    done = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True, check=True)
    grown, later = map(int, done.stdout.split())
    assert 180e6 < grown < 260e6
    assert abs(later) < 20e6  # the system counts by pages, and late
