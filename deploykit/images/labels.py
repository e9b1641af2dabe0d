"""Where the classes' names come from."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from deploykit.errors import ImagesError, InputError, UsageError
from deploykit.images.label_files import read_names
from deploykit.images.scan import class_folders
from deploykit.specs.model import Labels
from deploykit.system.text import command_line

CLASSES_FILE = "classes.txt"
#: What stands for a text file that the user has to write before ``--classes`` can name it.
LABELS_FILE = "FILE"
#: A longer list of labels is no option to type.
_TYPED_LABELS = 20
_BINARY_HINT = (
    "A binary head takes two names, the negative class first: --classes negative,positive"
)


def choose_labels(
    classes: str | None,
    checkpoint: Path,
    count: int,
    *,
    number_duplicates: bool = False,
    binary: bool = False,
) -> Labels:
    """Find the names of a model's classes.

    Args:
        classes: A folder whose sub-folders are the classes (in ``ImageFolder``'s order), a file as
            :func:`deploykit.images.label_files.read_names` takes it, or a comma list; None for
            ``classes.txt`` beside the checkpoint, else numbers.
        checkpoint: The weights' file.
        count: K, read off the weights.
        number_duplicates: Whether a name's second class is called ``crane 2``.
        binary: Whether one logit tells the two classes apart.

    Raises:
        UsageError: ``classes`` is none of these, or names a class twice.
        ImagesError: The folder holds ``train``, ``val`` and ``test`` instead of classes, or the
            file cannot be read as text.
        InputError: There are not as many names as classes, or the file leaves them in doubt.
    """
    beside = checkpoint.with_name(CLASSES_FILE)
    if classes is not None:
        names, source = _named(classes, binary=binary)
    elif _is_there(beside):  # one that cannot be read is not passed over
        names, source = read_names(beside), f"{CLASSES_FILE} beside the checkpoint"
    else:
        return Labels.numbered(count)
    if len(names) != count:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        theirs = "one logit tells 2 classes apart" if binary else f"weights have {count} classes"
        raise InputError(
            f"The {theirs}, but {source} names {len(names)}: {shown}.",
            hint=_BINARY_HINT if binary else _hint_to_go_on(names, count),
        )
    if number_duplicates:
        names = _numbered_duplicates(names)
    elif repeated := sorted(name for name, number in Counter(names).items() if number > 1):
        shown = ", ".join(repeated[:8]) + (", ..." if len(repeated) > 8 else "")
        first = repeated[0]
        raise UsageError(
            f"Class names must be unique; {source} repeats {len(repeated)}: {shown}.",
            hint=f"Rename them, or add --number-duplicates: {first}, {first} 2, ...",
        )
    return Labels(names=names, source=source)


def _hint_to_go_on(names: Sequence[str], count: int) -> str:
    again = f"or train again with {len(names)} class{'es' if len(names) != 1 else ''}."
    if len(names) > count:
        return (
            f"Give the {count} that the training had, in its order, with --classes: its folder, a "
            f"file or a comma list; {again}"
        )
    if count > _TYPED_LABELS:
        return (
            f"Give all {count} in the order of the training, one a line, in a file: "
            f"--classes {LABELS_FILE}; {again}"
        )
    whole = ",".join([*names, *(f"class_{i}" for i in range(len(names), count))])
    return (
        f"Give all {count} in the order of the training, such as "
        f"{command_line(['--classes', whole])} (a network trained with more classes than it had "
        f"folders never learned the last); {again}"
    )


def _numbered_duplicates(names: Sequence[str]) -> tuple[str, ...]:
    """``crane, crane`` => ``crane, crane 2``; no number makes a name that is there already."""
    taken, numbered = {*names}, []
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        unique = name
        if seen[name] > 1:
            while (unique := f"{name} {seen[name]}") in taken:
                seen[name] += 1
            taken.add(unique)
        numbered.append(unique)
    return tuple(numbered)


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


def _is_there(path: Path) -> bool:
    """Whether there is something of that name, or nobody lets us see whether there is."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except OSError:
        return False  # as above
    return True


def _named(classes: str, *, binary: bool) -> tuple[tuple[str, ...], str]:
    """The names, and where they come from in words."""
    folder = classes_folder(classes)
    if folder is not None:
        return tuple(class_folders(folder)), f"folder {folder.resolve().name}"
    if classes and _is_there(Path(classes)):
        return read_names(Path(classes)), f"file {Path(classes).name}"
    if "," in classes:
        return tuple(name.strip() for name in classes.split(",") if name.strip()), "--classes"
    raise UsageError(
        f"--classes {classes}: there is no such folder or file, and it is no comma list.",
        hint=_BINARY_HINT
        if binary
        else "Give the folder that was trained on, a text file with a name a line, or a,b,c.",
    )
