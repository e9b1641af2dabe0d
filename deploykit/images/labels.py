"""Where the classes' names come from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from deploykit.errors import ImagesError, InputError, UsageError
from deploykit.images.scan import class_folders, read_text
from deploykit.specs.model import Labels

CLASSES_FILE = "classes.txt"
#: What stands for a text file that the user has to write before ``--classes`` can name it.
LABELS_FILE = "FILE"
#: A longer list of labels is no option to type.
_TYPED_LABELS = 20


def choose_labels(classes: str | None, checkpoint: Path, count: int) -> Labels:
    """Find the names of a model's classes.

    Args:
        classes: A folder whose sub-folders are the classes (in ``ImageFolder``'s order), a text
            file with a name a line, or a comma list; None for ``classes.txt`` beside the
            checkpoint, else numbers.
        checkpoint: The weights' file.
        count: K, read off the weights.

    Raises:
        UsageError: ``classes`` is none of these, or names a class twice.
        ImagesError: The folder holds ``train``, ``val`` and ``test`` instead of classes, or the
            file cannot be read as text.
        InputError: There are not as many names as classes.
    """
    beside = checkpoint.with_name(CLASSES_FILE)
    if classes is not None:
        labels = _named(classes)
    elif beside.is_file():
        labels = Labels(names=_lines(beside), source=f"{CLASSES_FILE} beside the checkpoint")
    else:
        return Labels.numbered(count)
    if len(labels) != count:
        shown = ", ".join(labels.names[:8]) + (", ..." if len(labels) > 8 else "")
        raise InputError(
            f"The weights have {count} classes, but {labels.source} names {len(labels)}: {shown}.",
            hint="Give the classes of the training with --classes: the folder, a text file "
            "or a comma list.",
        )
    return labels


def classes_folder(classes: str | None) -> Path | None:
    """The folder that ``--classes`` names, if it is one."""
    # Not "", which Path takes for the current folder and a script makes of an empty variable.
    return Path(classes) if classes and _is(Path.is_dir, classes) else None


def name_labels(names: Sequence[str], folder: Path | None) -> str:
    """How ``--classes`` can name labels.

    Args:
        names: The labels, in the order of the logits.
        folder: Photos, whose sub-folders may be the labels; None without.

    Returns:
        The folder where it has these labels and no others, else a comma list;
        :data:`LABELS_FILE` where they are too many to type or have commas themselves.
    """
    # The folder may not be there any more, or have no sub-folders that are classes.
    with contextlib.suppress(UsageError, ImagesError):
        if folder is not None and class_folders(folder) == [*names]:
            return str(folder)
    if len(names) > _TYPED_LABELS or any("," in name for name in names):
        return LABELS_FILE
    return ",".join(names)


def _is(test: Callable[[Path], bool], text: str) -> bool:
    try:
        return test(Path(text))
    except OSError:
        return False  # a long comma list is no path that a system takes


def _named(classes: str) -> Labels:
    folder = classes_folder(classes)
    if folder is not None:
        names = tuple(class_folders(folder))
        return Labels(names=names, source=f"folder {folder.resolve().name}")
    if _is(Path.is_file, classes):
        return Labels(names=_lines(Path(classes)), source=f"file {Path(classes).name}")
    if "," in classes:
        names = tuple(name.strip() for name in classes.split(",") if name.strip())
        return Labels(names=names, source="--classes")
    raise UsageError(
        f"--classes {classes}: there is no such folder or file, and it is no comma list.",
        hint="Give the folder that was trained on, a text file with a name a line, or a,b,c.",
    )


def _lines(path: Path) -> tuple[str, ...]:
    lines = (line.strip() for line in read_text(path, "list of class names", "name").splitlines())
    return tuple(filter(None, lines))
