"""deploykit's own requirements and extras: which are there, and what the others lack."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.commands.doctor.findings import Finding, Status
from deploykit.commands.doctor.packages import (
    ONNX_RUNTIMES,
    UNREADABLE,
    one_onnx_runtime,
    version_of,
)
from deploykit.errors import DependencyError
from deploykit.system.deps import need

if TYPE_CHECKING:
    from packaging.requirements import Requirement


@dataclass(frozen=True)
class _Gap:
    """A required package that is not as it should be.

    Attributes:
        package: Its name.
        version: The one that is installed; None for none.
        wanted: The versions that would do.
    """

    package: str
    version: str | None
    wanted: str

    def __str__(self) -> str:
        if self.version is None:
            return f"lacks {self.package}"
        return f"has {self.package} {self.version}, needs {self.wanted}"


def extras_findings() -> Iterator[Finding]:
    """What deploykit itself requires, then what each of its extras does."""
    try:
        extras = importlib.metadata.metadata("deploykit").get_all("Provides-Extra", [])
        gaps = {extra: tuple(_gaps("deploykit", extra)) for extra in ("", *sorted(extras))}
    except (importlib.metadata.PackageNotFoundError, DependencyError, ValueError) as exc:
        for name in ("deploykit", "extra graph"):  # which others there are is not told either
            yield Finding(
                name=name,
                status="broken",
                detail=f"what it needs cannot be told: {exc}",
                remedies=("pip install packaging deploykit",),
            )
        return
    for extra, found in gaps.items():
        if extra != "dev":
            yield _finding(extra, found)


def _finding(extra: str, gaps: Sequence[_Gap]) -> Finding:
    """An extra, or for the empty one deploykit itself."""
    name = f"extra {extra}" if extra else "deploykit"
    if not gaps:
        return Finding(name=name, status="ok", detail="all that it requires is there")
    status: Status = "absent-but-fine" if extra else "missing"
    if any(gap.version is not None for gap in gaps):
        status = "broken"
    remedies: list[str] = []
    if any(gap.package in ONNX_RUNTIMES for gap in gaps):
        remedies += one_onnx_runtime()
    unreadable = [gap.package for gap in gaps if gap.version == UNREADABLE]
    if unreadable:
        # Not --force-reinstall: a package that has lost its record cannot be uninstalled.
        remedies.append(f"pip install --ignore-installed --no-deps {' '.join(unreadable)}")
    remedies.append(f'pip install "deploykit[{extra}]"' if extra else "pip install deploykit")
    return Finding(
        name=name,
        status=status,
        detail=", ".join(str(gap) for gap in gaps),
        remedies=tuple(remedies),
    )


def _gaps(package: str, extra: str) -> Iterator[_Gap]:
    """The packages that an extra of a package requires, and are missing or too old or too new."""
    requirement_type = need("packaging.requirements").Requirement
    for text in importlib.metadata.requires(package) or ():
        requirement: Requirement = requirement_type(text)
        if not _belongs_to(requirement, extra):
            continue
        version = version_of(requirement.name)
        if version in (None, UNREADABLE) or not requirement.specifier.contains(
            str(version), prereleases=True
        ):
            yield _Gap(requirement.name, version, str(requirement.specifier) or "any version")
            continue
        for further in sorted(requirement.extras):
            yield from _gaps(requirement.name, further)


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    """Whether an extra, or for the empty one the package itself, requires this on this system."""
    if requirement.marker is None:
        return not extra
    always = requirement.marker.evaluate({"extra": ""})
    return not always and requirement.marker.evaluate({"extra": extra}) if extra else always
