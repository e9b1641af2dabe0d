import struct
import sys
from pathlib import Path

import pytest
from elf_files import LOAD_ADDRESS, SEGMENT_SIZE, shared_library

from deploykit.commands.doctor.elf import linked_libraries
from deploykit.errors import InputError


@pytest.fixture
def library(tmp_path):
    return tmp_path / "libmade.so"


@pytest.mark.parametrize("needed", [(), ("libc.so.6",), ("libcudart.so.13", "libb.so", "liba.so")])
def test_the_linked_libraries_in_their_order(library, needed):
    library.write_bytes(shared_library(*needed))
    assert linked_libraries(library) == needed


@pytest.mark.skipif(sys.platform != "linux", reason="reads a library of Linux")
def test_a_real_library():
    import onnxruntime.capi.onnxruntime_pybind11_state as compiled

    assert "libc.so.6" in linked_libraries(Path(compiled.__file__))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "begins with b''"),
        (b"MZ\x90\0" + bytes(200), "begins with b'MZ"),
        (shared_library("libc.so.6")[:100], "requires a buffer of 56 bytes"),
        (shared_library("libc.so.6").replace(struct.pack("<2I", 2, 4), bytes(8)), "dynamically"),
        (
            shared_library("libc.so.6").replace(
                struct.pack("<2Q", 1, 1), struct.pack("<2Q", 1, 999)
            ),
            "has no end",
        ),
    ],
    ids=["empty", "Windows", "cut off", "nothing dynamic", "name outside"],
)
def test_a_file_that_is_no_library_of_linux(library, content, why):
    library.write_bytes(content)
    with pytest.raises(InputError, match=r"libmade\.so is not a shared library") as caught:
        linked_libraries(library)
    assert why in caught.value.message


def test_a_string_table_outside_the_file(library):
    address = struct.pack("<Q", LOAD_ADDRESS + 2 * SEGMENT_SIZE)
    library.write_bytes(shared_library("liba.so").replace(address, struct.pack("<Q", 1)))
    with pytest.raises(InputError, match="nothing is loaded at 0x1"):
        linked_libraries(library)


def test_a_file_that_is_not_there(library):
    with pytest.raises(InputError, match="No such file"):
        linked_libraries(library)
