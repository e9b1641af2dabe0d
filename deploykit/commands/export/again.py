"""One command that exports a bundle again, with all that is to be changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import msgspec

from deploykit.bundle.folder import Bundle, default_artifacts
from deploykit.bundle.manifest import MANIFEST_NAME, recorded_path
from deploykit.commands.export.embeddings import embeddings_options
from deploykit.commands.export.heads import head_options
from deploykit.commands.export.request import default_name
from deploykit.errors import DeploykitError
from deploykit.images.labels import LABELS_FILE, choose_labels, name_labels
from deploykit.parity.diagnosis import Finding
from deploykit.proof.reference import recorded_checkpoint
from deploykit.specs.preprocessing import format_size
from deploykit.system.text import command_line


def export_command(bundle: Bundle, findings: Iterable[Finding]) -> str | None:
    """The command that mends everything that options of ``export`` mend, with all that they need.

    What training does to a photo is written out, whatever it was derived from at export: so the
    command says all that it does, and a changed option moves no other.

    Args:
        bundle: What is to be exported again.
        findings: What is wrong with it. Where two contradict each other, the first is believed,
            and of the other no part is taken.

    Returns:
        A line for a shell, with a comment where it names a file that has to be written first, and
        without ``--trust-pickle``, which is the user's to give; None where no option of ``export``
        mends anything.
    """
    changes: dict[str, str] = {}
    for finding in findings:
        wanted = dict(finding.options)
        if changes.keys().isdisjoint(wanted):
            changes |= wanted
    if not changes:
        return None
    options = _given_options(bundle)
    if "--resize" in changes:
        options.pop("--crop-size", None)  # a crop belongs to the resize before it
    if "--antialias" in changes:
        options.pop("--no-antialias", None)
    options |= changes
    words = [word for pair in options.items() for word in pair if word]
    for key, value in bundle.manifest.architecture.args.items():
        # A text in quotes, as --arch-arg reads it: 5 would be the number.
        literal = msgspec.json.encode(value).decode() if isinstance(value, str) else repr(value)
        words += ["--arch-arg", f"{key}={literal}"]
    command = command_line(["deploykit", "export", *words, "--overwrite"])
    manifest = command_line([str(bundle.folder / MANIFEST_NAME)])
    notes = []
    if options.get("--classes") == LABELS_FILE:
        whose = "the finding" if "--classes" in changes else manifest
        notes.append(f"{LABELS_FILE}: a text file with the labels of {whose}, one a line")
    if "--thresholds" in options:
        file = f"--thresholds {options['--thresholds']}"
        notes.append(f"{file}: a line a class, robin,0.4, with those of {manifest}")
    return "  # ".join([command, *(["; ".join(notes)] if notes else [])])


def _given_options(bundle: Bundle) -> dict[str, str]:
    """The options, each once, that a bundle was exported with or could have been."""
    manifest = bundle.manifest
    preprocessing, names = manifest.preprocessing, manifest.labels.names
    options = {"--arch": manifest.architecture.name, "--ckpt": manifest.checkpoint.path}
    if manifest.checkpoint.weights:
        options["--weights"] = manifest.checkpoint.weights
    checkpoint = recorded_checkpoint(bundle)
    found = None
    # What lies beside the checkpoint may be another training's, or damaged.
    with contextlib.suppress(DeploykitError):
        found = checkpoint and choose_labels(None, checkpoint, len(names)).names
    if found != names:
        options["--classes"] = name_labels(names, recorded_path(manifest.images))
    resize = preprocessing.resize
    options["--resize"] = str(resize) if isinstance(resize, int) else format_size(resize)
    if preprocessing.crop_size is not None:
        options["--crop-size"] = format_size(preprocessing.crop_size)
    flags = {"--grayscale": preprocessing.grayscale, "--no-antialias": not preprocessing.antialias}
    options |= {flag: "" for flag, is_set in flags.items() if is_set}
    if preprocessing.pixels:
        options["--pixels"] = preprocessing.pixels
    options |= head_options(manifest.labels)
    options["--interpolation"] = preprocessing.interpolation
    options["--mean"] = ",".join(map(str, preprocessing.mean))
    options["--std"] = ",".join(map(str, preprocessing.std))
    if manifest.images is not None:
        options["--images"] = manifest.images
    if manifest.golden == "generated":
        options["--golden"] = manifest.golden
    options |= embeddings_options(manifest)
    if manifest.requested_opset is not None:
        options["--opset"] = str(manifest.requested_opset)
    if bundle.name != default_name(manifest.architecture.name):
        options["--name"] = bundle.name
    if bundle.folder.parent.resolve() != default_artifacts().resolve():
        options["--artifacts"] = str(bundle.folder.parent)
    return options
