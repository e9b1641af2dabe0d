"""The files that ``deploykit verify`` writes beside its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.system.destinations import check_all_different, check_destination, check_page_path

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.diagnose.text import Diagnosis
    from deploykit.commands.verify.result import Verification


@dataclass(frozen=True)
class Files:
    """What is written beside the result.

    Attributes:
        html: The certificate; None for none.
        junit: JUnit XML; None for none.
    """

    html: Path | None
    junit: Path | None

    @property
    def paths(self) -> list[Path]:
        """The files that are wanted."""
        return [path for path in (self.html, self.junit) if path is not None]

    def check(self) -> None:
        """Refuse early what could not be written in the end."""
        if self.html is not None:
            check_page_path(self.html)
        if self.junit is not None:
            check_destination(self.junit, "report", (".xml",))
        check_all_different({"output": self.paths})

    def forget(self) -> None:
        """Remove what an earlier run has written under these names."""
        for path in self.paths:
            path.unlink(missing_ok=True)

    def write(
        self,
        bundle: Bundle,
        result: Verification,
        blame: Diagnosis,
        mend: str | None,
        images: Path | None,
    ) -> None:
        """Write what is wanted, whatever the verdicts are."""
        layers = blame.layers or ()
        if self.html is not None:
            from deploykit.commands.verify.certificate import write_certificate

            # Of a file that lists photos, their names are relative to its folder.
            folder = images.parent if images is not None and images.is_file() else images
            write_certificate(
                self.html,
                bundle,
                result,
                stages=blame.stages,
                layers=layers,
                broken_off=blame.broken_off,
                mend=mend,
                photos_folder=folder,
            )
        if self.junit is not None:
            from deploykit.commands.verify.junit import write_junit

            write_junit(
                self.junit,
                bundle,
                result,
                stages=blame.stages,
                layers=layers,
                broken_off=blame.broken_off,
            )
