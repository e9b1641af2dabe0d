"""What the answers of a network that is exported mean: the head, and its thresholds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from deploykit.errors import InputError, ModelError, UsageError
from deploykit.images.label_tables import table_rows
from deploykit.images.scan import read_text
from deploykit.specs.heads import DEFAULT_THRESHOLD, HeadName, SingleLabel, head_of
from deploykit.specs.model import Labels
from deploykit.system.progress import Note, Progress
from deploykit.system.text import counted


def choose_head(
    wanted: HeadName | None,
    *,
    activation: str,
    logits: int,
    said: HeadName | None,
    progress: Progress,
) -> HeadName:
    """Find what a network's answers mean.

    Args:
        wanted: What the user says; None where nothing was said.
        activation: What the network's forward ends in: ``sigmoid``, ``softmax`` or nothing.
        logits: How many there are of an image.
        said: What the checkpoint or the network says.
        progress: Told what was found, unless it is what everybody takes for granted.

    Raises:
        UsageError: What the user says does not fit the network.
        ModelError: What the file says does not, or a network of one output has a softmax.
    """
    if logits == 1 and activation == "softmax":
        raise ModelError(
            "The network ends in a softmax over one output, which is 1 whatever the image shows.",
            hint="Train with two outputs and cross-entropy, or with one and a sigmoid.",
        )
    certain, why = _certain(activation, logits)
    if certain is None:
        if wanted is None and said is not None:
            progress(Note(f"head: {said}, as the checkpoint says"))
        name = wanted or said or "single-label"
        if name == "binary":
            raise UsageError(
                f"A binary head has one logit; the network gives {logits}.",
                hint="Two logits with cross-entropy are single-label: --head single-label",
            )
        return name
    if wanted not in (None, certain):
        raise UsageError(f"--head says {wanted}, but {why}.", hint=f"--head {certain}")
    if wanted is None and said not in (None, certain):
        raise ModelError(
            f"The checkpoint says {said}, but {why}.", hint=f"If that is right: --head {certain}"
        )
    if wanted is None:
        progress(Note(f"head: {certain}, for {why}"))
    return certain


def _certain(activation: str, logits: int) -> tuple[HeadName | None, str]:
    """The head of which a network leaves no doubt, and why; None where it does."""
    if activation:
        why = f"the network ends in a {activation}, which the graphs leave out"
        if activation == "softmax":
            return "single-label", why
        return ("binary" if logits == 1 else "multi-label"), why
    return ("binary", "the network gives one logit") if logits == 1 else (None, "")


def with_head(
    labels: Labels, name: HeadName, threshold: float | None, thresholds: Mapping[str, float]
) -> Labels:
    """Labels with their head.

    Args:
        labels: Without one.
        name: The head.
        threshold: Of the classes that ``thresholds`` does not name; None for 0.5.
        thresholds: By the classes' names.

    Raises:
        UsageError: A threshold is not above 0 and below 1, of no class, or the head has none.
    """
    if name == "single-label":
        if threshold is not None or thresholds:
            raise UsageError(
                "A single-label head has no thresholds: the largest logit decides.",
                hint="For several labels an image: --head multi-label",
            )
        return msgspec.structs.replace(labels, head=SingleLabel())
    unknown = [each for each in thresholds if each not in labels.names]
    if unknown:
        raise UsageError(
            f"There is a threshold for {unknown[0]!r}, which is no class.",
            hint=f"The classes: {', '.join(labels.names[:8])}{', ...' if len(labels) > 8 else ''}.",
        )
    for label, value in thresholds.items():
        if not 0 < value < 1:
            raise UsageError(
                f"The threshold of {label!r} has to be above 0 and below 1; got {value:g}."
            )
    default = DEFAULT_THRESHOLD if threshold is None else threshold
    each = tuple(thresholds.get(label, default) for label in labels.names)
    head = head_of(name, each)
    if name == "binary" and labels.names[0] in thresholds:
        negative, positive = labels.names
        raise UsageError(
            f"A binary head has the threshold of its second class, {positive!r}, not of "
            f"{negative!r}.",
            hint=f"Its own is 1 less that: {positive},{1 - thresholds[negative]:g}",
        )
    return msgspec.structs.replace(labels, head=head)


def head_options(labels: Labels) -> dict[str, str]:
    """The options of an export with this head; FILE stands for thresholds that differ."""
    if not labels.head.thresholds:
        return {}
    options = {"--head": labels.head.name}
    if len({*labels.head.thresholds}) == 1:
        return {**options, "--threshold": f"{labels.head.thresholds[0]:g}"}
    return {**options, "--thresholds": "FILE"}


def read_thresholds(path: Path) -> dict[str, float]:
    """Read the thresholds of classes.

    Args:
        path: A JSON object, ``{"robin": 0.4}``; or lines of a class and its threshold with a comma
            between them, where a first line without a number is a header.

    Raises:
        InputError: It cannot be read, is neither, has no class or one twice, or a threshold is not
            above 0 and below 1.
    """
    text = read_text(path, "list of thresholds", "class")
    is_json = path.suffix.lower() == ".json" or text.lstrip().startswith("{")
    try:
        return _checked(_of_json(text) if is_json else _of_lines(text))
    except ValueError as exc:
        raise InputError(
            f"The thresholds in {path} are not clear: {exc}.",
            hint='Write a line a class, robin,0.4, or JSON: {"robin": 0.4}',
        ) from exc


def _checked(thresholds: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """The thresholds by the classes' names, which are all different."""
    found: dict[str, float] = {}
    for where, name, value in thresholds:
        if name in found:
            raise ValueError(f"{where}{name!r} has a threshold twice")
        if not 0 < value < 1:
            raise ValueError(
                f"{where}the threshold of {name!r} has to be above 0 and below 1; got {value:g}"
            )
        found[name] = value
    if not found:
        raise ValueError("it has no class")
    return found


def _of_lines(text: str) -> Iterator[tuple[str, str, float]]:
    """The line of each class, in words, its name and its threshold."""
    for place, (line, cells) in enumerate(table_rows(text, (",",))):
        if len(cells) != 2:
            shown = ",".join(cells)[:40]
            raise ValueError(
                f"line {line}, {shown!r}, has {counted(len(cells), 'cell')} between commas; a "
                "class and its threshold are 2"
            )
        name, written = cells
        try:
            yield f"line {line}: ", name, float(written)
        except ValueError:
            # A header has words. What has a digit is a threshold that was mistyped.
            if place or not written or any(map(str.isdigit, written)):
                raise ValueError(
                    f"line {line}: the threshold of {name!r} is {written[:40]!r}, which is no "
                    "number"
                ) from None


def _of_json(text: str) -> Iterator[tuple[str, str, float]]:
    """The same of an object."""
    try:
        # Pairs, so that no key is lost; and floats, which are of any size.
        value = json.loads(text, object_pairs_hook=tuple, parse_int=float)
    except ValueError as exc:
        raise ValueError(f"it is no JSON, {exc}") from exc
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc
    if type(value) is not tuple:
        raise ValueError("it is JSON, but no object with a threshold for each class")
    for name, threshold in value:
        if type(threshold) is not float:
            kinds: dict[type, str] = {tuple: "an object", list: "a list"}
            shown = kinds.get(type(threshold)) or json.dumps(threshold)[:40]
            raise ValueError(f"the threshold of {name!r} is {shown}, which is no number")
        yield "", name, threshold
