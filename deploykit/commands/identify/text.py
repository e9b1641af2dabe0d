"""What ``identify`` found, as text."""

from __future__ import annotations

from deploykit.commands.identify.run import Identification
from deploykit.system.text import command_line, counted, visible

_SHOWN_FITS = 12


def identification_text(found: Identification) -> str:
    """The architectures that fit and the next command, or the closest and what differs."""
    lines = [f"checkpoint  {visible(str(found.path))}, {found.tensors} tensors"]
    lines += _fits(found) if found.fits else _misses(found)
    lines.append(f"compared    {counted(found.compared, 'architecture')}, with default arguments")
    lines += (f"skipped     {reason}" for reason in found.skipped)
    if found.fits:
        lines += ("next        export it:", export_command(found))
    return "\n".join(lines)


def export_command(found: Identification) -> str:
    """The command that exports the first architecture that fits."""
    words = ["--arch", next(iter(found.fits)), "--ckpt", found.path, "--classes", "DIR"]
    if found.trust_pickle:
        words.append("--trust-pickle")
    return command_line(["deploykit", "export", *words])


def _fits(found: Identification) -> list[str]:
    lines = [f"fits        {name}, {classes} classes" for name, classes in found.fits.items()]
    if len(lines) > _SHOWN_FITS:
        lines[_SHOWN_FITS:] = [f"            ... and {len(lines) - _SHOWN_FITS} more: --json"]
    if len(found.fits) > 1:
        lines.append(
            "            Names and shapes alone cannot tell these apart, but padding, activations\n"
            "            and the like may differ: take the one that was trained. verify --stages\n"
            "            shows an accuracy that is lost."
        )
    return lines


def _misses(found: Identification) -> list[str]:
    lines = ["fits        none"]
    for match in found.near_misses:
        differs = match.mismatch
        lines.append(
            f"close       {match.architecture}: {differs.shared} entries fit, "
            f"{len(differs.missing)} are missing, {len(differs.unexpected)} unexpected, "
            f"{len(differs.misshapen)} of another shape"
        )
        lines += (f"            {line.strip()}" for line in differs.message.splitlines()[1:])
    lines.append(
        "            Your own network is named by its file, --arch train.py:Net; arguments other\n"
        "            than the defaults are given with --arch-arg."
    )
    return lines
