"""The files of a checkpoint: one, or an index and the shards that it names."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from deploykit.bundle.manifest import sha256_of
from deploykit.errors import CheckpointError
from deploykit.specs.value import decode_json
from deploykit.system.files import read_file

INDEX_ENDING = ".index.json"
#: As Hugging Face names shards: model-00001-of-00003.safetensors.
_SHARD = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})(?P<ending>\.(?:safetensors|bin))")
_AGAIN = "Download it again: an index has a weight_map of tensors to files."
_MAX_INDEX_BYTES = 64 << 20


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for a checkpoint's file that the system does not let be read."""
    return CheckpointError(
        f"{path} cannot be read: {error.strerror or error}.",
        hint="Check that the file may be read, and that nothing else holds it open.",
    )


def is_index(path: Path) -> bool:
    """Whether a file is named as an index of shards."""
    return path.name.endswith(INDEX_ENDING) and path.is_file()


def read_index(path: Path) -> dict[str, Path]:
    """Read which shard has which tensor.

    Args:
        path: The index, ``model.safetensors.index.json``.

    Returns:
        Names of tensors to shards, which lie in the folder of the index and are files.

    Raises:
        CheckpointError: The index is damaged, names what is not in its folder, or lacks a shard.
    """
    try:
        content = read_file(path, limit=_MAX_INDEX_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        names = decode_json(content, _Index).weight_map
    except ValueError as error:
        raise CheckpointError(f"{path} is no index of shards: {error}.", hint=_AGAIN) from error
    shards = sorted(set(names.values()))
    for shard in shards:
        odd = re.search(r"[/\\:]", shard) or not shard.isprintable() or shard.endswith(".json")
        if odd or shard in ("", ".", ".."):
            raise CheckpointError(
                f"{path} names {shard!r:.80}, which is no weights' file in its folder.",
                hint="The shards of an index lie beside it.",
            )
    try:
        missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    except OSError as error:  # of a name that is too long
        raise unreadable(path, error) from error
    if missing or not shards:
        said = f"{len(missing)} of its {len(shards)} shards are" if shards else "its shards are"
        raise CheckpointError(
            f"{path} is not whole: {said} not in its folder{': ' * bool(missing)}"
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}.",
            hint="Download all files of the checkpoint into one folder.",
        )
    return {name: path.parent / shard for name, shard in names.items()}


def check_no_shard(path: Path) -> None:
    """Raise a CheckpointError for a file that is one of several shards, and name their index."""
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match["count"]) < 2 or not path.is_file():
        return
    index = path.with_name(f"{match['name']}{match['ending']}{INDEX_ENDING}")
    raise CheckpointError(
        f"{path} is one of {int(match['count'])} shards, and has a part of the weights.",
        hint=f"Name the index, which joins them: {index}"
        if index.is_file()
        else f"Name the index, which joins them: download all shards and {index.name}.",
    )


def checkpoint_files(path: Path) -> tuple[Path, ...]:
    """The checkpoint's file; of an index also its shards.

    Raises:
        CheckpointError: See :func:`read_index`.
    """
    return (path, *sorted(set(read_index(path).values()))) if is_index(path) else (path,)


def checkpoint_sha256(path: Path) -> str:
    """The hash of a checkpoint, in hexadecimal; of an index it covers its shards.

    Raises:
        CheckpointError: A file cannot be read; or see :func:`read_index`.
    """
    hashes = []
    for file in checkpoint_files(path):
        try:
            hashes.append(sha256_of(file))
        except OSError as error:
            raise unreadable(file, error) from error
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
