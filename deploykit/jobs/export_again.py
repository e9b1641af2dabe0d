"""One command that exports a bundle again, with all that is to be changed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from deploykit.bundle import Bundle, default_artifacts
from deploykit.jobs.export_request import default_name
from deploykit.jobs.labels import CLASSES_FILE
from deploykit.manifest import Manifest
from deploykit.parity.blame import Finding
from deploykit.specs import Labels, Preprocessing, format_size

_OPTION = re.compile(r"(--[a-z][a-z-]*) (.+?)(?= --[a-z]|$)")
#: A longer list of labels is no option to type.
_TYPED_LABELS = 20
#: What stands for a text file that the user has to write first.
_A_FILE = "FILE"


def export_command(bundle: Bundle, findings: Iterable[Finding]) -> str | None:
    """The command that mends everything that options of ``export`` mend, with all that they need.

    What training does to a photo is written out, whatever it was derived from at export: so the
    command says all that it does, and a changed option moves no other.

    Args:
        bundle: What is to be exported again.
        findings: What is wrong with it. Where two contradict each other, the first is believed.

    Returns:
        A line for a shell; None where no option of ``export`` mends anything.
    """
    changes: dict[str, str] = {}
    for finding in findings:
        for option, value in _OPTION.findall(" ".join(finding.options)):
            changes.setdefault(option, value)
    if not changes:
        return None
    given = _given(bundle)
    if "--resize" in changes:
        given.pop("--crop-size", None)  # a crop belongs to the resize before it
    # ``--classes FILE, a text file with ...``: the hint tells what has to be in it.
    named = {
        option: _A_FILE if value.startswith(f"{_A_FILE},") else value
        for option, value in (given | changes).items()
    }
    words = [word for pair in named.items() for word in pair]
    return shlex.join(["deploykit", "export", *words, *_flags(bundle.manifest)])


def _given(bundle: Bundle) -> dict[str, str]:
    """The options, each once, that a bundle was exported with or could have been."""
    manifest = bundle.manifest
    options = {
        "--arch": manifest.architecture.name,
        "--ckpt": manifest.checkpoint.path,
        **_labels_option(manifest.labels, manifest.photos),
        **_preprocessing_options(manifest.preprocessing),
    }
    if manifest.photos is not None and options.get("--classes") != manifest.photos:
        options["--images"] = manifest.photos
    if bundle.name != default_name(manifest.architecture.name):
        options["--name"] = bundle.name
    if bundle.folder.parent.resolve() != default_artifacts().resolve():
        options["--artifacts"] = str(bundle.folder.parent)
    return options


def _labels_option(labels: Labels, photos: str | None) -> dict[str, str]:
    if labels.source == "assumed" or labels.source.startswith(CLASSES_FILE):
        return {}  # as they are without being named
    if photos is not None and labels.source == f"folder {Path(photos).name}":
        return {"--classes": photos}
    if len(labels) > _TYPED_LABELS or any("," in name for name in labels.names):
        return {"--classes": _A_FILE}
    return {"--classes": ",".join(labels.names)}


def _preprocessing_options(preprocessing: Preprocessing) -> dict[str, str]:
    resize, crop = preprocessing.resize, preprocessing.crop_size
    return {
        "--resize": str(resize) if isinstance(resize, int) else format_size(resize),
        **({"--crop-size": format_size(crop)} if crop is not None else {}),
        "--interpolation": preprocessing.interpolation,
        "--mean": ",".join(map(str, preprocessing.mean)),
        "--std": ",".join(map(str, preprocessing.std)),
    }


def _flags(manifest: Manifest) -> list[str]:
    """What may be given several times, or without a value."""
    arguments = manifest.architecture.args.items()
    words = [word for key, value in arguments for word in ("--arch-arg", f"{key}={value}")]
    if manifest.checkpoint.trusted_pickle:
        words.append("--trust-pickle")
    return [*words, "--overwrite"]
