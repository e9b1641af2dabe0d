"""Does every step from a photo's file to the answer stay within its tolerance?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploykit.commands.diagnose.stages.run import StagesRequest, diagnose_stages
from deploykit.commands.diagnose.text import stage_report_text
from deploykit.errors import MissingError
from deploykit.suite._subject import Images, Subject
from deploykit.suite.plugin import MEASURED


def test_no_stage_is_to_blame(
    subject: Subject, images: Images, record_property: Callable[[str, object], None]
) -> None:
    """``verify --stages`` finds no step that leaves its tolerance, and no fault."""
    if images.described.kind != "photos":
        pytest.skip("the walk begins with the files of photos: --deploykit-images DIR")
    request = StagesRequest(
        images=subject.folder,
        max_images=subject.max_images,
        transform=subject.transform,
        reference=subject.reference,
        runtime=subject.runtime,
        precision=subject.precision,
    )
    try:
        report = diagnose_stages(subject.bundle, request)
    except MissingError as error:
        pytest.skip(f"it cannot be walked here: {error.message}")
    if not report.passed:
        pytest.fail(stage_report_text(report), pytrace=False)
    record_property(MEASURED, f"{len(report.steps)} stages, each within its tolerance")
