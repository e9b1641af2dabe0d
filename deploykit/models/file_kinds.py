"""What a checkpoint file really is, by its content: a file of another kind is named, not parsed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from deploykit.bundle.checkpoint_files import INDEX_ENDING, check_no_shard, is_index, unreadable
from deploykit.bundle.packed import ZIP_ERRORS
from deploykit.errors import CheckpointError

Container: TypeAlias = Literal["zip", "legacy", "safetensors", "shards", "keras"]

HEAD_BYTES = 512
SAFETENSORS_HEADER_LIMIT = 100_000_000
#: What torch.save wrote first before its files were zip archives (torch/serialization.py).
LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

SAVE_WEIGHTS = "Give the PyTorch weights: torch.save(model.state_dict(), 'weights.pth')."
AGAIN = "Copy or download the file again: it is not whole."
UNPACK = "Unpack it, and give the checkpoint inside."
DOWNLOAD = "Download the checkpoint itself; this is what the server or the browser saved instead."

#: Offset, bytes, what has these bytes there, and what to do.
SIGNATURES = (
    (0, b"\xff\xd8\xff", "a JPEG image", SAVE_WEIGHTS),
    (0, b"\x89PNG", "a PNG image", SAVE_WEIGHTS),
    (0, b"GIF8", "a GIF image", SAVE_WEIGHTS),
    (8, b"WEBP", "a WebP image", SAVE_WEIGHTS),
    (0, b"%PDF", "a PDF document", SAVE_WEIGHTS),
    (0, b"version https://git-lfs", "a Git LFS pointer to the file", "Fetch it: git lfs pull."),
    (4, b"TFL3", "a TensorFlow Lite model", SAVE_WEIGHTS),
    (0, b"GGUF", "a GGUF model", SAVE_WEIGHTS),
    (0, b"\x93NUMPY", "a NumPy array", SAVE_WEIGHTS),
    (0, b"vtrt", "a TensorRT for RTX engine", SAVE_WEIGHTS),
    (0, b"ftrt", "a TensorRT engine", SAVE_WEIGHTS),
    (0, b"\x1f\x8b", "a gzip archive", UNPACK),
    (0, b"BZh", "a bzip2 archive", UNPACK),
    (0, b"\xfd7zXZ", "an xz archive", UNPACK),
    (0, b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
)
SUFFIXES = {
    ".onnx": "an ONNX graph",
    ".pb": "a TensorFlow graph",
    ".index": "the index of a TensorFlow checkpoint",
    ".mlmodel": "a Core ML model",
}
#: Of what torch.save wrote, the member that tells what is in it.
_PICKLE = "data.pkl"
#: Weights hardly shrink. What shrinks more than this, beyond a little text, is made to fill memory.
_MOST_INFLATED = 4
_FREE_BYTES = 16 << 20
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")


def container_of(path: Path, *, is_named: bool = True) -> Container:
    """Tell how a checkpoint's file is made.

    Args:
        path: The file.
        is_named: Whether the user named it; else an index did, whose shard it is.

    Raises:
        CheckpointError: There is no such file, it cannot be read, or it is of another kind.
    """
    try:
        if is_named and is_index(path):
            return "shards"
        head = _read_head(path)
        if is_named:
            check_no_shard(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if head.startswith(HDF5_MAGIC):
        return "keras"
    if head.startswith(b"PK\x03\x04"):
        return _archive_kind(path)
    if _is_safetensors(head):
        return "safetensors"
    _check_kind(path, head)
    if LEGACY_MAGIC in head[:32]:
        return "legacy"
    if head[:1] == b"\x80":
        raise _foreign(path, "a pickle that torch.save did not write", SAVE_WEIGHTS)
    raise _foreign(path, f"an unknown kind of file (it starts with {head[:8]!r})", SAVE_WEIGHTS)


def _check_kind(path: Path, head: bytes) -> None:
    """Raise for a file of a known other kind."""
    for offset, magic, kind, hint in SIGNATURES:
        if head.startswith(magic, offset):
            raise _foreign(path, kind, hint)
    if head.lstrip().lower().startswith(WEB_PAGES):
        raise _foreign(path, "a web page", DOWNLOAD)
    # A serialised ONNX ModelProto starts with its ir_version (field 1) and producer (field 2).
    if head[:1] == b"\x08" and head[2:3] == b"\x12":
        raise _foreign(path, "an ONNX graph", SAVE_WEIGHTS)
    if path.suffix.lower() in SUFFIXES:
        raise _foreign(path, SUFFIXES[path.suffix.lower()], SAVE_WEIGHTS)


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint.", hint=_neighbours(path))
    if not path.is_file():
        if path.exists():
            raise CheckpointError(
                f"{path} is a device or a pipe, not a file.", hint="Copy it to a file first."
            )
        hint = _neighbours(path.parent) if path.parent.is_dir() else "Check the path."
        raise CheckpointError(f"There is no checkpoint {path}.", hint=hint)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise CheckpointError(f"{path} is empty.", hint=AGAIN)
    return head


def _neighbours(folder: Path) -> str:
    suffixes = {".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar", ".keras", ".h5"}
    names = [file.name for file in folder.glob(f"*{INDEX_ENDING}")]  # which joins its shards
    names = names or sorted(p.name for p in folder.iterdir() if p.suffix.lower() in suffixes)
    if not names:
        return "Name the file that training saved the weights in, often best_model.pth."
    return f"There is: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}."


def _is_safetensors(head: bytes) -> bool:
    # Eight bytes of header size, then the header, which is JSON (safetensors' format description).
    size = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 0 < size <= SAFETENSORS_HEADER_LIMIT


def _archive_kind(path: Path) -> Literal["zip", "keras"]:
    names = zip_members(path)
    inner = {name.partition("/")[2] for name in names}  # torch puts all below one folder
    if "constants.pkl" in inner:
        raise _foreign(
            path,
            "a TorchScript archive: a program, not weights",
            "Take the weights out: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth').",
        )
    if "archive_format" in inner:
        raise _foreign(path, "a program that torch.export saved, not weights", SAVE_WEIGHTS)
    if any(name.endswith(".weights.h5") for name in names):
        return "keras"
    if _PICKLE not in inner:
        raise _foreign(path, "a zip archive that torch.save did not write", UNPACK)
    return "zip"


def zip_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip archive by their names; none is read.

    Raises:
        CheckpointError: The archive is damaged, or claims far more than it can hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (OSError, IndexError, *ZIP_ERRORS) as error:
        raise damaged(path, error) from error
    members = {info.filename: info for info in infos}
    size, claimed = path.stat().st_size, sum(info.file_size for info in infos)
    stored = sum(info.file_size for info in infos if info.compress_type == zipfile.ZIP_STORED)
    if stored > size or claimed > _MOST_INFLATED * size + _FREE_BYTES:
        raise CheckpointError(
            f"{path} has {size:,} bytes and says that it unpacks to {claimed:,}.",
            hint="torch.save compresses nothing: save the weights again with it.",
        )
    if len(members) != len(infos) or any(i.flag_bits & 1 or i.header_offset < 0 for i in infos):
        raise damaged(path, ValueError("two of its members have one name, or one is encrypted"))
    return members


def pickle_member(members: Mapping[str, zipfile.ZipInfo]) -> str:
    """The member of a file of torch.save that tells what is in it: ``best_model/data.pkl``.

    Raises:
        ValueError: There are several.
    """
    (name,) = (name for name in members if name.partition("/")[2] == _PICKLE)
    return name


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a checkpoint that its format's reader refused.

    Args:
        path: The file.
        error: What the reader raised.
    """
    reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    if isinstance(error, MemoryError):
        reason = "it takes more memory than there is"
    return CheckpointError(
        f"{path} is cut short or damaged: {reason or type(error).__name__}.", hint=AGAIN
    )


def _foreign(path: Path, kind: str, hint: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a PyTorch checkpoint: it is {kind}.", hint=hint)
