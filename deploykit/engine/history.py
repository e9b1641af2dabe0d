"""The build history: how long earlier builds took, to say how long the next one may."""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploykit.errors import UsageError
from deploykit.specs.engine import Flavour, Profile
from deploykit.specs.model import Precision
from deploykit.specs.value import Value
from deploykit.system.files import read_file, replacing

_KEPT_BUILDS = 50


class Build(Value, frozen=True):
    """A finished build.

    Attributes:
        flavour: The TensorRT that built.
        precision: Of the graph.
        targets: What was built for.
        profile: The batch sizes.
        seconds: How long it took.
        workspace_bytes: The most device memory that a layer was allowed; None for all.
    """

    flavour: Flavour
    precision: Precision
    targets: tuple[str, ...]
    profile: Profile
    seconds: float
    workspace_bytes: int | None = None


@dataclass(frozen=True)
class BuildHistory:
    """The builds of a bundle on this machine, ``cache/builds.json``.

    It is a convenience: a file that cannot be read counts as empty, and one that cannot be written
    stays as it is. Of two processes that add to it at once, one may be forgotten.
    """

    path: Path

    def builds(self) -> tuple[Build, ...]:
        """The builds that are remembered, the newest last."""
        try:
            return msgspec.json.decode(read_file(self.path), type=tuple[Build, ...])
        except (OSError, msgspec.MsgspecError, UsageError):
            return ()

    def add(self, build: Build) -> None:
        """Remember a build, and forget the oldest of more than fifty."""
        builds = (*self.builds(), build)[-_KEPT_BUILDS:]
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path, follow_link=False) as partial:
                partial.write_bytes(msgspec.json.encode(builds))

    def estimate_seconds(
        self,
        flavour: Flavour,
        precision: Precision,
        targets: tuple[str, ...],
        profile: Profile,
        workspace_bytes: int | None = None,
    ) -> float | None:
        """The median time of the builds that were like this one; None when there was none."""
        like = (flavour, precision, targets, profile, workspace_bytes)
        seconds = [
            each.seconds
            for each in self.builds()
            if (each.flavour, each.precision, each.targets, each.profile, each.workspace_bytes)
            == like
        ]
        return statistics.median(seconds) if seconds else None
