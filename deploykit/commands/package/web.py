"""``--format web``: a folder with a page that runs the FP32 graph in the visitor's browser.

Whoever opens the page sees, before anything else, whether this browser gives the recorded answers.
The page decodes with the browser, and resizes with its own code, byte for byte as Pillow does.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from deploykit.bundle.folder import Bundle
from deploykit.bundle.golden import Golden, read_golden
from deploykit.commands.package.web_runtime import VERSION, copy_runtime
from deploykit.errors import BundleError, InputError
from deploykit.html import words
from deploykit.html.document import render, script_json, write_document
from deploykit.parity.measures import decides
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.heads import Head
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.progress import Progress, Step, silent

_STYLES = ("verdict.css", "web.css")
_SCRIPTS = ("web.js",)
#: Modules of their own, so that they can be tested, and read, without the page.
_MODULES = ("pixels.js", "answers.js")
#: The page reads the files beside it, compiles WebAssembly and shows the visitor's own photos.
#: onnxruntime-web starts threads from its own file; a policy in the page allows that file alone.
_ALLOWED = {
    "script-src": "'self' 'wasm-unsafe-eval'",
    "connect-src": "'self'",
    "img-src": "blob:",
    "worker-src": "'self'",
    "trusted-types": "default",
}
_ELSEWHERE = (
    "Serve it where deploykit's own code makes the pixels, as deploykit predict does on a machine"
)


def check_web(bundle: Bundle) -> None:
    """Refuse a bundle whose pixels the page would not make as training did.

    Raises:
        BundleError: Its preprocessing keeps fractions of grey levels, or does not antialias.
    """
    preprocessing = bundle.manifest.preprocessing
    if preprocessing.pixels:
        reason = (
            f"it resizes to {preprocessing.pixel_type} pixels, and the page's resize, like "
            "Pillow's of photos, rounds to whole grey levels"
        )
    elif not preprocessing.antialias:
        reason = (
            f"it resizes by {preprocessing.interpolation} without antialiasing, as torch does in "
            "single precision, and the page's resize is Pillow's"
        )
    else:
        return
    raise BundleError(
        f"Bundle {bundle.name} cannot become a page: {reason}.", hint=f"{_ELSEWHERE}."
    )


def write_web(
    bundle: Bundle,
    folder: Path,
    *,
    onnxruntime_web: Path | None = None,
    progress: Progress = silent,
) -> dict[str, int]:
    """Write the page and all that it loads.

    Args:
        bundle: An open bundle.
        folder: Where to; it is there, and empty.
        onnxruntime_web: A folder with that package, unpacked; None to ask npm.
        progress: Called before each step.

    Returns:
        The size of each file in bytes, by its path in the folder with ``/``.

    Raises:
        BundleError: The bundle is damaged, or the page would make other pixels.
        MissingError: There is no npm, or it does not get onnxruntime-web.
        InputError: What should be onnxruntime-web is not, or the system fails to write.
    """
    check_web(bundle)
    graph = bundle.checked(bundle.deploy_graph("fp32"))
    golden = read_golden(bundle)
    try:
        (folder / "runtime").mkdir()
        copy_runtime(folder / "runtime", onnxruntime_web, progress)
        progress(Step("writing", detail="index.html"))
        shutil.copyfile(graph, folder / "model.onnx")
        (folder / "golden").mkdir()
        (folder / "golden" / "images.bin").write_bytes(golden.images.tobytes())
        (folder / "golden" / "logits.bin").write_bytes(golden.logits.astype("<f4").tobytes())
        templates = Path(__file__).parent / "templates"
        for module in _MODULES:
            shutil.copyfile(templates / module, folder / module)
    except OSError as exc:
        raise InputError(
            f"Writing {exc.filename or folder} failed: {exc.strerror or exc}.",
            hint="Check the folder's permissions and the free space on its disk.",
        ) from exc
    context = {
        "bundle": bundle,
        "manifest": bundle.manifest,
        "page": _page_settings(bundle, golden),
        "golden": golden,
        "megabytes": graph.stat().st_size / 1e6,
        "runtime": VERSION,
        "script_json": script_json,
        "words": words,
    }
    page = render(__package__, "web.html.j2", _STYLES, _SCRIPTS, context, _ALLOWED)
    write_document(folder / "index.html", page)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _page_settings(bundle: Bundle, golden: Golden) -> dict[str, Any]:
    """What the page's scripts go by, as JSON."""
    labels = bundle.manifest.labels
    return {
        "labels": labels.names,
        "head": head_settings(labels.head),
        "preprocessing": pixel_settings(bundle.manifest.preprocessing),
        "golden": {
            "images": len(golden.images),
            "logits": labels.logits,
            "decidable": decides(golden.logits, labels.head, "fp32").tolist(),
            "max_relative_error": tolerance_for("fp32").max_relative_error,
        },
    }


def pixel_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """What ``pixels.js`` goes by; scaling and normalising are the graph's."""
    limit = Image.MAX_IMAGE_PIXELS
    return {
        "resize": preprocessing.resize,
        "input_size": preprocessing.input_size,
        "interpolation": preprocessing.interpolation,
        "grayscale": preprocessing.grayscale,
        "most_pixels": None if limit is None else 2 * limit,
    }


def head_settings(head: Head) -> dict[str, Any]:
    """What ``answers.js`` goes by: also each threshold as a logit, computed where training was."""
    return {
        "kind": head.name,
        "thresholds": head.thresholds,
        "limits": [math.log(each) - math.log1p(-each) for each in head.thresholds],
    }
