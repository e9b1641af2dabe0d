"""Reading a checkpoint: whatever training saved becomes plain sets of weights."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deploykit.bundle.checkpoint_files import read_index
from deploykit.errors import CheckpointError, DeploykitError
from deploykit.models.entries import Entry, find_entries, named_tensors
from deploykit.models.file_kinds import AGAIN, Container, container_of, damaged
from deploykit.models.heads import said_head
from deploykit.models.keras_file import KerasWeights, read_keras
from deploykit.models.pickled import ClaimError
from deploykit.models.torch_file import read_legacy, read_zip
from deploykit.models.trusted import code_refusal, load_trusted
from deploykit.specs.heads import HeadName
from deploykit.system.deps import need

#: What the readers and the libraries below them raise on a damaged file. A file may be wrong in
#: any way, so that any of Python's errors on values may be its fault.
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Weights:
    """The weights of a network, as a checkpoint holds them.

    Attributes:
        name: Their entry in the checkpoint, ``model.state_dict``; empty for the checkpoint itself.
        rank: Where that name stands among the usual ones; lower is taken first.
        state_dict: Names to CPU tensors, in the types of the file. They may be mapped from the
            file: copy them before the file is written again.
        versions: Of layers, by their paths, where the file has them: a layer may read weights of
            an earlier version in another way.
        reason: Why no network can be given them; empty where one can.
        notes: What was done to get there, in words for the user.
        head: What the file says that the network's answers mean; None if nothing.
        arch: The zoo's network that the file tells; empty where it tells none.
    """

    name: str
    rank: tuple[int, ...]
    state_dict: dict[str, Tensor]
    versions: dict[str, int]
    reason: str
    notes: tuple[str, ...]
    head: HeadName | None
    arch: str


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's file holds.

    Attributes:
        container: How the file is made.
        loaded: All of it: plain values, tensors, and what stands for anything else.
        entries: Its sets of weights, those under the usual names first; a network can be given at
            least one of them.
        note: How it was loaded, where the user should know; else empty.
        arch: The zoo's network that the file tells; empty where it tells none.
    """

    container: Container
    loaded: object
    entries: tuple[Entry, ...]
    note: str
    arch: str = ""


def read_weights(path: Path, *, trust_pickle: bool = False, arch: str = "") -> tuple[Weights, ...]:
    """Read every set of weights in a checkpoint; see :func:`read_checkpoint`."""
    checkpoint = read_checkpoint(path, trust_pickle=trust_pickle, arch=arch)
    head = said_head(checkpoint.loaded)
    return tuple(
        _weights(entry, checkpoint.note, head, checkpoint.arch) for entry in checkpoint.entries
    )


def _weights(entry: Entry, note: str, head: HeadName | None, arch: str) -> Weights:
    tensors, versions, notes = named_tensors(entry)
    types = {t.dtype for t in tensors.values() if t.is_floating_point()} - {torch.float32}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in types)
    notes += [f"{name} weights converted to float32" for name in names]
    notes = [*([note] if note else []), *notes]
    return Weights(
        name=entry.name,
        rank=entry.rank,
        state_dict=tensors,
        versions=versions,
        reason=entry.reason,
        notes=tuple(notes),
        head=head,
        arch=arch,
    )


def read_checkpoint(path: Path, *, trust_pickle: bool = False, arch: str | None = "") -> Checkpoint:
    """Read a checkpoint, without running any code from it.

    Args:
        path: A file of ``torch.save`` (zip or legacy), safetensors or Keras, or the index of
            shards.
        trust_pickle: Let a file that asks for code run it. Only for files of one's own making.
        arch: The user's own network, as ``--arch`` names it: its file has the classes that such a
            file was saved with. Empty where the network is not the user's own, None where nobody
            can name one.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind; asks for code; claims
            more than it can hold; holds no weights, or none that a network can be given.
        DependencyError: It is a safetensors or Keras file, and safetensors or h5py is missing.
    """
    container = container_of(path)
    loaded: object
    note = ""
    if container == "shards":
        loaded = _join(path)
    else:
        loaded, code = _load(path, container)
        if code:
            if not trust_pickle:
                raise code_refusal(path, code, arch)
            loaded, note = load_trusted(path, code, arch)
    told = ""
    if isinstance(loaded, KerasWeights):
        told, note, loaded = loaded.arch, loaded.note, loaded.state_dict
    return Checkpoint(container, loaded, tuple(find_entries(loaded, path)), note, told)


def _load(path: Path, container: Container) -> tuple[object, tuple[str, ...]]:
    """What a file holds, and the names of the code that it asks for."""
    known: tuple[type[Exception], ...] = DAMAGED
    if container == "safetensors":
        reader = need("safetensors.torch")
        known += (need("safetensors").SafetensorError,)
    try:
        if container == "zip":
            return read_zip(path)
        if container == "legacy":
            return read_legacy(path)
        if container == "keras":
            return read_keras(path), ()
        return reader.load_file(path, device="cpu"), ()
    except DeploykitError:
        raise
    except ClaimError as error:
        raise CheckpointError(
            f"{path} claims far more than it holds: {error}.",
            hint="Save the weights alone, each tensor whole: "
            "torch.save({k: v.clone() for k, v in model.state_dict().items()}, 'weights.pth').",
        ) from error
    except known as error:
        raise damaged(path, error) from error


def _join(path: Path) -> dict[str, object]:
    """The tensors of an index's shards, each from the shard that the index names for it."""
    shards: dict[Path, Mapping[object, object]] = {}
    joined: dict[str, object] = {}
    for name, shard in read_index(path).items():
        if shard not in shards:
            loaded, code = _load(shard, container_of(shard, is_named=False))
            if code:
                raise CheckpointError(
                    f"{shard} holds more than weights: loading it would run code.",
                    hint="Save the shards again, from the weights alone.",
                )
            shards[shard] = loaded if isinstance(loaded, Mapping) else {}
        if name not in shards[shard]:
            raise CheckpointError(
                f"{shard} lacks {name!r:.80}, which {path.name} names.", hint=AGAIN
            )
        joined[name] = shards[shard][name]
    return joined
