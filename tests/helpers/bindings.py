"""Look into TensorRT's Python bindings without the libraries that they need.

The wheel ``tensorrt-cu13-bindings`` is public; the libraries that it links, ``libnvinfer.so.11``
and its kin, are not. A copy of its extension module is made importable by marking the symbols that
it wants from them as optional, and by dropping the demand for the libraries. Nothing in such a
module can be called, but every class can be listed.
"""

import importlib.util
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# The ELF-64 object file format, chapters "Sections" and "Dynamic linking".
_SHT_DYNAMIC, _SHT_DYNSYM = 6, 11
_STB_GLOBAL, _STB_WEAK = 1, 2
_DT_NEEDED, _DT_IGNORED = 1, 0x6FFFFEEF
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")

_LIST = """
import importlib, json, sys
sys.path[:0] = sys.argv[2:]
module = importlib.import_module(sys.argv[1])
members = {"": dir(module)}
todo = [(name, getattr(module, name)) for name in dir(module)]
while todo:
    name, value = todo.pop()
    if isinstance(value, type) and name not in members:
        members[name] = dir(value)
        todo += [(f"{name}.{each}", getattr(value, each)) for each in dir(value)
                 if not each.startswith("_") and isinstance(getattr(value, each), type)]
print(json.dumps(members))
"""


class _Section(NamedTuple):
    kind: int
    offset: int
    size: int
    link: int


def find_bindings() -> Path | None:
    """The extension module of ``tensorrt-cu13-bindings``; None where it is not installed."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or not spec.submodule_search_locations:
        return None
    module = Path(spec.submodule_search_locations[0]) / "tensorrt.so"
    return module if module.is_file() else None


def relax(module: Path, folder: Path) -> None:
    """Write a copy of an extension module that loads without NVIDIA's libraries."""
    data = bytearray(module.read_bytes())
    sections = list(_sections(data))
    for section in sections:
        entries = range(section.offset, section.offset + section.size)
        if section.kind == _SHT_DYNSYM:
            for offset in entries[:: _SYMBOL.size]:
                _, info, _, defined_in, _, _ = _SYMBOL.unpack_from(data, offset)
                if not defined_in and info >> 4 == _STB_GLOBAL:
                    data[offset + 4] = _STB_WEAK << 4 | info & 15
        elif section.kind == _SHT_DYNAMIC:
            strings = sections[section.link].offset
            for offset in entries[:: _DYNAMIC.size]:
                tag, value = _DYNAMIC.unpack_from(data, offset)
                if tag == _DT_NEEDED and data.startswith(b"libnv", strings + value):
                    struct.pack_into("<q", data, offset, _DT_IGNORED)
    (folder / module.name).write_bytes(data)


def _sections(data: bytearray) -> Iterator[_Section]:
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    for index in range(count):
        _, kind, _, _, offset, length, link, *_ = _SECTION.unpack_from(data, table + index * size)
        yield _Section(kind, offset, length, link)


def members_of(module: str, *folders: Path) -> dict[str, list[str]]:
    """List a module's classes in a process of its own.

    Args:
        module: ``tensorrt``.
        folders: Where to look for it first.

    Returns:
        The names in each class, by the class's name (``ILogger.Severity``); the module's own under
        the empty name.
    """
    process = subprocess.run(
        [sys.executable, "-c", _LIST, module, *map(str, folders)],
        capture_output=True,
        text=True,
        check=True,
    )
    members: dict[str, list[str]] = json.loads(process.stdout)
    return members
