"""A verification with its certificate and its JUnit XML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.system.files import (
    check_all_different,
    check_destination,
    check_ours,
    remove_ours,
)
from deploykit.system.progress import Progress

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.verify.request import VerifyRequest
    from deploykit.commands.verify.result import Verification


def verify_with_reports(
    open_it: Callable[[], Bundle],
    request: VerifyRequest,
    *,
    html: Path | None,
    junit: Path | None,
    progress: Progress,
) -> Verification:
    """Verify, and write the reports that are asked for.

    Args:
        open_it: Opens the bundle, once the request and the paths make sense.
        request: What to verify.
        html: Where the certificate goes.
        junit: Where the JUnit XML goes.
        progress: See :func:`deploykit.commands.verify.run.verify_bundle`.

    Raises:
        UsageError: A path cannot be written or is another file's, or the request contradicts
            itself: then nothing has been touched.
        DeploykitError: See :func:`deploykit.commands.verify.run.verify_bundle`. Reports of an
            earlier run are gone then: nobody takes them for this one's.
    """
    from deploykit.commands.verify.junit import JUNIT_MARK, write_junit
    from deploykit.commands.verify.run import verify_bundle
    from deploykit.html.document import check_page, page_mark

    request.check()
    marks: dict[Path, str] = {}
    if html is not None:
        check_page(html, "verify")
        marks[html] = page_mark("verify")
    if junit is not None:
        check_destination(junit, "report", (".xml",))
        check_ours(junit, "report", JUNIT_MARK)
        marks[junit] = JUNIT_MARK
    check_all_different({"output": [path for path in (html, junit) if path is not None]})
    for path, mark in marks.items():
        remove_ours(path, mark)
    bundle = open_it()
    result = verify_bundle(bundle, request, progress)
    if html is not None:
        from deploykit.commands.verify.page import write_certificate

        write_certificate(html, bundle, result, images=request.images)
    if junit is not None:
        write_junit(junit, bundle, result)
    return result
