"""``--format web``: a folder with a page that runs the FP32 graph in the visitor's browser.

Whoever opens the page sees, before anything else, whether this browser gives the recorded answers.
The page decodes with the browser, and resizes with its own code, byte for byte as Pillow does.
"""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from deploykit.bundle.folder import Bundle
from deploykit.bundle.golden import Golden, read_golden
from deploykit.commands.package.proof_notes import proof_notes
from deploykit.commands.package.request import PackageRequest, Written
from deploykit.commands.package.web_runtime import VERSION, copy_runtime
from deploykit.errors import BundleError
from deploykit.html.document import render, write_document
from deploykit.parity.measures import decides
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.heads import Head
from deploykit.specs.preprocessing import Preprocessing, describe_filter
from deploykit.system.progress import Progress, Step
from deploykit.system.text import command_line

if TYPE_CHECKING:
    pass

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
#: What its user has to know.
_NOTES = (
    "no browser has run it yet: in each one the page first answers the recorded images, and "
    "takes no photos where the answers are others",
    "any web server does, but a file that is opened by itself loads nothing; the page computes "
    "in one thread where the server does not isolate it (headers COOP and COEP)",
)
#: Of Pillow: the version since which the height is resized first where it shrinks more.
_HEIGHT_FIRST_SINCE = 13
#: A web server that is at hand, seen from this machine alone.
_SERVING = ("python", "-m", "http.server", "--bind", "127.0.0.1")


def write(bundle: Bundle, made: Path, request: PackageRequest, progress: Progress) -> Written:
    """Write the page and all that it loads.

    Args:
        bundle: An open bundle.
        made: The folder; it is there, and empty.
        request: Where it will be, and a folder with onnxruntime-web.
        progress: Called before each step.

    Raises:
        BundleError: The bundle is damaged, or the page would make other pixels.
        ParityError: The graph has failed its comparison.
        MissingError: There is no npm, or it does not get onnxruntime-web.
        InputError: What should be onnxruntime-web is not.
        OSError: The system fails to write.
    """
    _check_pixels(bundle)
    file = bundle.deploy_graph("fp32")
    graph = bundle.checked(file)
    golden = read_golden(bundle)
    notes = (*proof_notes(bundle, [file]), *_NOTES)
    (made / "runtime").mkdir()
    copy_runtime(made / "runtime", request.onnxruntime_web, progress)
    progress(Step("writing", detail="index.html"))
    shutil.copyfile(graph, made / "model.onnx")
    (made / "golden").mkdir()
    (made / "golden" / "images.bin").write_bytes(golden.images.tobytes())
    (made / "golden" / "logits.bin").write_bytes(golden.logits.astype("<f4").tobytes())
    templates = Path(__file__).parent / "templates"
    for module in _MODULES:
        shutil.copyfile(templates / module, made / module)
    context = {
        "bundle": bundle,
        "labels": bundle.manifest.labels,
        "preprocessing": bundle.manifest.preprocessing,
        "settings": _settings(bundle, golden),
        "images": len(golden.images),
        "megabytes": graph.stat().st_size / 1e6,
        "pillow": bundle.manifest.versions.get("pillow", "of an unknown version"),
        "runtime": VERSION,
        "serving": _SERVING,
    }
    page = render(__package__, "web.html.j2", _STYLES, _SCRIPTS, context, _ALLOWED)
    write_document(made / "index.html", page)
    return Written(
        content=f"a page, the fp32 graph ({graph.stat().st_size / 1e6:.1f} MB) and "
        f"onnxruntime-web {VERSION} ({_size_of(made / 'runtime') / 1e6:.1f} MB)",
        notes=notes,
        command=command_line([*_SERVING, "--directory", str(request.output)]),
    )


def _check_pixels(bundle: Bundle) -> None:
    """Refuse a bundle whose pixels the page would not make as training did.

    Raises:
        BundleError: Its preprocessing keeps fractions of grey levels, or does not antialias.
    """
    preprocessing = bundle.manifest.preprocessing
    if preprocessing.pixels:
        reason = (
            f"its pixels are {preprocessing.pixel_type}, and the page's resize rounds to whole "
            "grey levels"
        )
    elif not preprocessing.antialias:
        filtered = describe_filter(preprocessing.interpolation, antialias=False)
        reason = f"it resizes by {filtered}, and the page's resize antialiases, as Pillow's does"
    else:
        return
    raise BundleError(
        f"Bundle {bundle.name} cannot become a page: {reason}.",
        hint="Let deploykit make its pixels: deploykit predict",
    )


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _settings(bundle: Bundle, golden: Golden) -> dict[str, Any]:
    """What the page's scripts go by, as JSON."""
    labels = bundle.manifest.labels
    return {
        "labels": labels.names,
        "head": head_settings(labels.head),
        "preprocessing": pixel_settings(
            bundle.manifest.preprocessing, bundle.manifest.versions.get("pillow", "")
        ),
        "golden": {
            "images": len(golden.images),
            "logits": labels.logits,
            "decidable": decides(golden.logits, labels.head, "fp32").tolist(),
            "max_relative_error": tolerance_for("fp32").max_relative_error,
        },
    }


def pixel_settings(preprocessing: Preprocessing, pillow: str) -> dict[str, Any]:
    """What ``pixels.js`` goes by; scaling and normalising are the graph's.

    Args:
        preprocessing: Of the bundle.
        pillow: The version that exported it, whose pixels the proof is about.
    """
    major = re.match(r"\d{1,4}", pillow)
    limit = Image.MAX_IMAGE_PIXELS
    return {
        "resize": preprocessing.resize,
        "input_size": preprocessing.input_size,
        "interpolation": preprocessing.interpolation,
        "grayscale": preprocessing.grayscale,
        "most_pixels": None if limit is None else 2 * limit,
        # In Pillow's Resample.c from 13.0 on, and in no release note.
        "height_first": major is not None and int(major[0]) >= _HEIGHT_FIRST_SINCE,
    }


def head_settings(head: Head) -> dict[str, Any]:
    """What ``answers.js`` goes by: also each threshold as a logit, computed where training was."""
    return {
        "kind": head.name,
        "thresholds": head.thresholds,
        "limits": [math.log(each) - math.log1p(-each) for each in head.thresholds],
    }
