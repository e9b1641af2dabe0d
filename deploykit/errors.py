"""The errors a user can meet, and the exit code of each.

::

    DeploykitError                     1   only ever raised as one of its children
    ├── UsageError                     2   an option, a name or a combination that makes no sense
    ├── ParityError                    3   the deployed model does not decide as the trained one did
    ├── InputError                     4   a file or folder cannot be used
    │   ├── CheckpointError                the weights
    │   ├── ArchitectureError              the code that should make the network
    │   ├── ModelError                     a network that gives NaN, or another answer each time
    │   ├── GraphError                     an ONNX graph
    │   ├── BundleError                    a bundle or its manifest
    │   └── ImagesError                    a folder without one readable image
    ├── MissingError                   5   something this machine does not have
    │   ├── DependencyError                a Python package
    │   ├── DeviceError                    a GPU, or a runtime that can use it
    │   └── ServerError                    a server that answers
    └── UnreadableImagesError          6   done, but not for every image, under --strict

Each carries a message (what failed, with the values) and a hint (what to do about it).
"""


class DeploykitError(Exception):
    """The root of every error that is the user's to mend.

    Args:
        message: What failed, with the values, in one sentence or a short block of lines.
        hint: What the user can do about it, as an instruction.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageError(DeploykitError):
    """An option, a name or a combination of options that makes no sense."""

    exit_code = 2


class ParityError(DeploykitError):
    """The candidate does not decide as the reference does, or nothing shows that it does."""

    exit_code = 3


class InputError(DeploykitError):
    """A file or folder that was given cannot be used, or an output cannot be finished."""

    exit_code = 4


class CheckpointError(InputError):
    """A checkpoint that cannot be read, or whose weights do not fit the architecture."""


class ArchitectureError(InputError):
    """The user's own code did not make a network."""


class ModelError(InputError):
    """A network that cannot be deployed: NaN in its answers, or another answer each time."""


class GraphError(InputError):
    """An ONNX graph that cannot be read, or is not what the bundle promises."""


class BundleError(InputError):
    """A bundle that is missing, damaged, in the way, or cannot be changed."""


class ImagesError(InputError):
    """A path without one readable image."""


class MissingError(DeploykitError):
    """Something that this machine does not have."""

    exit_code = 5


class DependencyError(MissingError):
    """A Python package that is not installed, or does not import."""


class DeviceError(MissingError):
    """A device that is not there, or a runtime that cannot use it."""


class ServerError(MissingError):
    """A server that does not answer, is not ready, or answers only who has a key."""


class UnreadableImagesError(DeploykitError):
    """The work is done, but some images could not be read and the user asked for that to matter."""

    exit_code = 6
