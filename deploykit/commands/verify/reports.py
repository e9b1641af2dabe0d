"""A verification with its certificate and its JUnit XML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UsageError
from deploykit.system.files import check_all_different, check_destination, check_page_path
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
        UsageError: A path cannot be written, or the request contradicts itself.
        DeploykitError: See :func:`deploykit.commands.verify.run.verify_bundle`. Reports of an
            earlier run are removed then: nobody takes them for this one's.
    """
    from deploykit.commands.verify.run import verify_bundle

    request.check()
    if html is not None:
        check_page_path(html)
    if junit is not None:
        check_destination(junit, "report", (".xml",))
    outputs = [path for path in (html, junit) if path is not None]
    check_all_different({"output": outputs})
    try:
        bundle = open_it()
        result = verify_bundle(bundle, request, progress)
        if html is not None:
            from deploykit.commands.verify.page import write_certificate

            write_certificate(html, bundle, result, images=request.images)
        if junit is not None:
            from deploykit.commands.verify.junit import write_junit

            write_junit(junit, bundle, result)
    except UsageError:
        raise
    except BaseException:
        for path in outputs:
            path.unlink(missing_ok=True)
        raise
    return result
