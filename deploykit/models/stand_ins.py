"""Harmless things that training saves beside the weights, read without making any of them.

``{"best_acc": np.float64(0.9), "args": argparse.Namespace(lr=0.1), "model": ...}`` is an everyday
checkpoint. None of that is needed here, so each is read as an empty object: the real constructors
are never called. For numpy this is more than thrift: ``numpy.dtype`` trusts the flags that a file
gives it, and a crafted file could make it read any address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

#: How pickles name what a stand-in takes the place of.
NAMES = (
    "argparse.Namespace",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",  # before numpy 2
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",  # Python 3.13
    "pathlib._local.WindowsPath",
    # What a defaultdict is usually made with.
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
)


class StandIn:
    """An empty object that takes any arguments and any state, and keeps neither."""

    def __new__(cls, *_args: object) -> Self:
        """Make it, whatever the original needs."""
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        """Forget the original's state."""


def stand_ins() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """What ``torch.serialization.safe_globals`` takes: each stand-in, and the name it answers to.

    A class a name, so that a message on the object says what it was.
    """
    inert = [(type(name.rpartition(".")[2], (StandIn,), {}), name) for name in NAMES]
    return [*inert, (_plain_dict, "collections.defaultdict")]


def _plain_dict(*_args: object) -> dict[object, object]:
    # torch's restricted unpickler fills a plain dictionary, but not a defaultdict.
    return {}
