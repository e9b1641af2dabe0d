"""The classes' names out of a file: lines, a table, JSON, or the ``names`` of a YAML file.

Numbers beside the names are the places of the logits, if they are 0, 1, 2, ... in any order, each
once. Other numbers belong to the names, or are an error where the format leaves no doubt.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import InputError, UsageError
from deploykit.images.scan import read_text
from deploykit.specs.model import check_class_names
from deploykit.system.deps import need

#: What the entry of a JSON object is called that holds the names, among other settings.
_ENTRIES = ("id2label", "label2id", "label_names", "class_to_idx", "names", "classes")
#: Those of numbers by name.
_BY_NAME = ("label2id", "class_to_idx")
#: Where timm keeps its entry as well.
_NESTED = "pretrained_cfg"
#: The first line of a table with one column.
_HEADS = frozenset({"class", "classes", "label", "labels", "name", "names", "class_name"})
_NUMBER_FIRST = re.compile(r"(\d+)(\s*[:=|,;]\s*|[.)]\s+|\s+)(\S.*)")
_NUMBER_LAST = re.compile(r"(\S.*?)(\s*[:=|,;]\s*|\s+)(\d+)")
#: Between a number and a name these are no part of either, as they are in 12:30 and 3.5 inch.
_SEPARATOR = re.compile(r"\s*(?:[=|,;]\s*|[:.)]\s+)")
_DELIMITERS = (",", ";", "\t")
#: Characters of a name; ImageNet's longest has 121.
_LONGEST = 1000
#: Not what str.splitlines takes for ends as well: a name with one is refused, not cut in two.
_LINE = re.compile("[^\r\n]*(?:\r\n|\r|\n|$)")
#: Around a name: spaces of any width, and tabs.
_BLANKS = " \t\u00a0\u3000"
_HINT = (
    "Write one name a line, in the order of the logits; or 0,name or JSON such as "
    '{"0": "name"}, with every number from 0 once.'
)


def read_names(path: Path) -> tuple[str, ...]:
    """Read the names of the classes, in the order of the logits.

    Args:
        path: Text with a name a line, empty lines and those that begin with ``#`` skipped; text or
            a table with the number of each name before or behind it; JSON, or the same as Python
            writes it: a list, names by number, numbers by name, or an object that holds one of
            these as ``id2label``, ``label2id``, ``label_names``, ``class_to_idx``, ``names`` or
            ``classes``; or YAML with a list or an object of ``names``.

    Raises:
        InputError: It cannot be read, or leaves in doubt what the names are.
    """
    text = read_text(path, "list of class names", "name")
    try:
        return _names_of(text, path.suffix.lower())
    except _UnclearError as exc:
        hint = exc.hint or _HINT
        raise InputError(f"The class names in {path} are not clear: {exc}.", hint=hint) from exc


def format_names(names: Sequence[str]) -> str:
    """The text of a file without an ending of its own that :func:`read_names` reads these from.

    Lines; a JSON list where lines would not give them back, as of ``0 cat`` and ``1 dog``.
    """
    lines = "".join(f"{name}\n" for name in names)
    with contextlib.suppress(_UnclearError):
        if _names_of(lines, "") == tuple(names):
            return lines
    return json.dumps([*names], ensure_ascii=False, indent=0) + "\n"


class _UnclearError(Exception):
    """Why it is not clear what the names are, and where it is another than usual, what to do."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


def _names_of(text: str, ending: str) -> tuple[str, ...]:
    if ending in {".yaml", ".yml"}:
        names = _json_names(_yaml_value(text))
    elif ending == ".json" or text.lstrip()[:1] in {"{", "["}:
        names = _json_names(_json_value(text))
    else:
        names = _line_names(_lines(text), table=ending in {".csv", ".tsv"})
    if not names:
        raise _UnclearError("it has none")
    for place, name in enumerate(names):
        if not name.strip():
            raise _UnclearError(f"the name of class {place} is empty")
        if len(name) > _LONGEST:
            raise _UnclearError(f"{name[:40]!r}... has {len(name)} characters")
    try:
        check_class_names(names)
    except UsageError as exc:
        raise _UnclearError(exc.message.rstrip("."), exc.hint) from exc
    return tuple(names)


def _lines(text: str) -> list[str]:
    """The lines that are neither empty nor comments."""
    lines = [line.strip(f"{_BLANKS}\r\n") for line in _LINE.findall(text)]
    return [line for line in lines if line and not line.startswith("#")]


def _by_number(pairs: Sequence[tuple[int, str]]) -> list[str]:
    """Order names by their numbers, which must be 0, 1, 2, ..., each once."""
    numbers = [number for number, _ in pairs]
    if repeated := sorted(n for n, count in Counter(numbers).items() if count > 1)[:5]:
        raise _UnclearError(f"several names have the same number: {', '.join(map(str, repeated))}")
    if missing := sorted({*range(len(numbers))} - {*numbers})[:5]:
        raise _UnclearError(
            f"the numbers of {len(numbers)} classes are 0 to {len(numbers) - 1}; here they go from "
            f"{min(numbers)} to {max(numbers)}, without {', '.join(map(str, missing))}"
        )
    return [name for _, name in sorted(pairs)]


def _is_enumeration(numbers: Sequence[int], first: int = 0) -> bool:
    return sorted(numbers) == [*range(first, first + len(numbers))]


def _line_names(lines: Sequence[str], *, table: bool) -> list[str]:
    if longest := next((line for line in lines if len(line) > _LONGEST), None):
        raise _UnclearError(f"a line has {len(longest)} characters: {longest[:40]!r}...")
    for delimiter in _DELIMITERS:
        if (names := _table_names(lines, delimiter)) is not None:
            return names
    if table:
        try:
            rows = [*csv.reader(_ended(lines))]
        except csv.Error as exc:
            raise _UnclearError(f"it is no table ({exc})") from exc
        if any(len(row) != 1 for row in rows) or any(each in "".join(lines) for each in "\t;"):
            raise _UnclearError("a table needs two columns, a number and a name, or one of names")
        names = [row[0] for row in rows]
        return names[1:] if names and names[0].lower() in _HEADS else names
    for pattern, number, name in ((_NUMBER_FIRST, 1, 3), (_NUMBER_LAST, 3, 1)):
        # Blanks once each: the patterns try every way to cut a run of them.
        single = (re.sub("[ \t]+", " ", line) for line in lines)
        matches = [match for line in single if (match := pattern.fullmatch(line))]
        if len(matches) < max(2, len(lines)):
            continue
        pairs = [(int(match[number]), match[name]) for match in matches]
        numbers = [place for place, _ in pairs]
        # "grade 0" and "grade 1" are the names: without the numbers nothing tells them apart.
        apart = number == 1 or len({name for _, name in pairs}) == len(pairs)
        separated = all(_SEPARATOR.fullmatch(match[2]) for match in matches)
        if apart and (separated or _is_enumeration(numbers) or _is_enumeration(numbers, first=1)):
            return _by_number(pairs)
    return [*lines]


def _ended(lines: Sequence[str]) -> list[str]:
    """Lines with their ends, which csv keeps where one is in quotes, instead of joining lines."""
    return [f"{line}\n" for line in lines]


def _table_names(lines: Sequence[str], delimiter: str) -> list[str] | None:
    """The names of a table of two columns, one of them numbers; None for anything else."""
    options: dict[str, Any] = {"skipinitialspace": True, "strict": True}
    try:
        rows = [*csv.reader(_ended(lines), delimiter=delimiter, **options)]
    except csv.Error:
        return None
    rows = [[cell.strip(_BLANKS) for cell in row] for row in rows]
    if not rows or any(len(row) != 2 for row in rows):
        return None

    def numbered(rows: Sequence[Sequence[str]]) -> list[int]:
        return [place for place in (0, 1) if rows and all(_is_number(row[place]) for row in rows)]

    columns = numbered(rows)
    if not columns:
        rows = rows[1:]  # a line that names the columns
        columns = numbered(rows)
    if not columns:
        return None
    if len(columns) == 2:  # the names are numbers, too
        columns = [c for c in columns if _is_enumeration([int(row[c]) for row in rows])] or columns
        if len(columns) == 2 and any(row[0] != row[1] for row in rows):
            raise _UnclearError("either column may be the numbers")
    number = columns[0]
    return _by_number([(int(row[number]), row[1 - number]) for row in rows])


def _is_number(text: object) -> bool:
    # No number of classes has more digits, and int() takes no text of any length.
    return isinstance(text, str) and re.fullmatch("[0-9]{1,9}", text) is not None


def _json_value(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as exc:
        problem = str(exc)
    # {0: 'cat', 1: 'dog'}, as Python prints a dictionary.
    try:
        body = ast.parse(text.strip(), mode="eval").body
        if isinstance(body, ast.Dict):
            return _Pairs(
                (ast.literal_eval(key), ast.literal_eval(value))
                for key, value in zip(body.keys, body.values, strict=True)
                if key is not None
            )
        value: object = ast.literal_eval(body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as exc:
        raise _UnclearError(f"it is no JSON ({problem})") from exc
    return value


class _Pairs(list[tuple[Any, Any]]):
    """The entries of an object, with those of equal keys."""


def _json_names(value: object) -> list[str]:
    if isinstance(value, dict):  # as Python wrote it inside another
        value = _Pairs(value.items())
    if isinstance(value, _Pairs):
        keys = [key for key, _ in value]
        if (named := _entry_names(value)) is not None:
            return named
        nested = [
            inner for key, inner in value if key == _NESTED and isinstance(inner, _Pairs | dict)
        ]
        if nested:
            return _json_names(nested[0])
        places = [_place(key) for key in keys]
        if all(place is not None for place in places) and not all(
            type(inner) is int for _, inner in value
        ):
            pairs = [(int(key), _name(inner)) for key, inner in value]
        elif all(_place(inner) is not None for _, inner in value):
            pairs = [(int(inner), _name(key)) for key, inner in value]
        else:
            for key in keys:
                if isinstance(key, _Unquoted):
                    _name(key)  # which says what is wrong with it
            shown = ", ".join(map(str, keys[:5]))[:80]
            raise _UnclearError(
                f"it has neither a number for each name nor an entry {', '.join(_ENTRIES)}, "
                f"but {shown}"
            )
        return _by_number(pairs)
    if isinstance(value, list | tuple):
        return [_name(each) for each in value]
    raise _UnclearError(f"it is {_shown(value)}, neither a list nor an object")


def _entry_names(value: _Pairs) -> list[str] | None:
    """The names that an object holds among other settings; None without.

    Raises:
        _UnclearError: Two of its entries name others.
    """
    found: tuple[str, list[str]] | None = None
    for name in _ENTRIES:
        for key, inner in value:
            # {"names": 0, "classes": 1} are classes.
            if key != name or not isinstance(inner, list | dict):
                continue
            if found is None:
                found = name, _json_names(inner)
                continue
            try:
                others = _json_names(inner)
            except _UnclearError:
                continue  # label2id, which cannot have a name twice, or no names at all
            # Of a name that comes twice it has one number.
            count = len(others) if name in _BY_NAME else None
            if others != found[1][:count]:
                raise _UnclearError(
                    f"its entries {found[0]} and {name} name other classes",
                    f"Leave the right one of {found[0]} and {name} in it.",
                )
    return None if found is None else found[1]


def _place(value: object) -> int | None:
    if type(value) is int:  # and no bool
        return value
    return int(value) if isinstance(value, str) and _is_number(value) else None


def _name(value: object) -> str:
    """A name; of the pair in Keras's list, ``["n01440764", "tench"]``, the second."""
    if isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value):
        return str(value[1])
    if isinstance(value, _Unquoted):
        raise _UnclearError(
            f"{value.text!r} without quotes is {value.kind} in YAML, no text",
            f"Quote it: '{value.text}'",
        )
    raise _UnclearError(f"{_shown(value)} is no name")


def _shown(value: object) -> str:
    """A value in an error; of a list, which YAML can repeat without end, only what it is."""
    if isinstance(value, dict | _Pairs):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"{str(value)[:40]!r}"


@dataclass(frozen=True)
class _Unquoted:
    """What YAML takes for no text because it has no quotes: ``no``, ``1.0``, ``2024-01-01``.

    Attributes:
        text: As it is written.
        kind: What YAML takes it for.
    """

    text: str
    kind: str

    def __str__(self) -> str:
        return self.text


#: What YAML takes words without quotes for, by the ends of its tags.
_YAML_KINDS = {
    "bool": "true or false",
    "float": "a number",
    "int": "a number",
    "null": "nothing",
    "timestamp": "a date",
}


def _yaml_value(text: str) -> object:
    yaml = need("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[misc,name-defined]  # it is an extra
        """Objects as pairs; what is no text, and no plain whole number, as it is written."""

    def pairs(loader: Any, node: Any) -> _Pairs:
        read = functools.partial(loader.construct_object, deep=True)
        return _Pairs((read(key), read(inner)) for key, inner in node.value)

    def unquoted(loader: Any, node: Any) -> object:
        written = loader.construct_scalar(node)
        # Not 010, which is 8, nor 12:30, which is 750.
        if node.tag.endswith(":int") and re.fullmatch("0|[1-9][0-9]{0,8}", written):
            return int(written)
        return _Unquoted(written, _YAML_KINDS[node.tag.rpartition(":")[2]])

    Loader.add_constructor("tag:yaml.org,2002:map", pairs)
    for kind in _YAML_KINDS:
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", unquoted)
    for kind in ("merge", "value"):  # << and =, which nobody needs here
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_scalar)
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise _UnclearError(f"it is no YAML ({getattr(exc, 'problem', exc)}{where})") from exc
