"""What the Python functions share: checked arguments, and errors and results in Python's words."""

from __future__ import annotations

import contextlib
import difflib
import functools
import html
import importlib
import inspect
import os
import re
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as type_hints

from deploykit.bundle.folder import Bundle, find_bundle, open_bundle
from deploykit.errors import DeploykitError, UsageError
from deploykit.system.progress import Note, Progress, Step

PathLike: TypeAlias = Path | str
BundleLike: TypeAlias = Bundle | Path | str
"""What :func:`deploykit.export` returned; or a bundle's name or folder."""
SizeLike: TypeAlias = int | tuple[int, int] | str
"""``224`` for a square, ``(224, 192)``, height first, or ``"224x192"``."""
ChannelsLike: TypeAlias = float | tuple[float, float, float] | str
"""One number, or those of R, G and B; or ``"0.5,0.5,0.5"``."""

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Which function, below ``deploykit.commands``, words which result.
TEXTS = {
    "Benchmark": "bench.api:shown_text",
    "Diagnosis": "diagnose.api:shown_text",
    "BuildResult": "build.text:build_text",
    "Bundle": "inspect.text:bundle_text",
    "BundleInspection": "inspect.text:inspection_text",
    "CheckpointInspection": "inspect.text:inspection_text",
    "EngineInspection": "inspect.text:inspection_text",
    "GraphInspection": "inspect.text:inspection_text",
    "Identification": "identify.text:identification_text",
    "Model": "predict.model:model_text",
    "PackageResult": "package.text:package_text",
    "Prediction": "predict.text:row_text",
    "PredictionSummary": "predict.text:prediction_text",
    "Quantization": "quantize.text:quantization_text",
    "ShardSummary": "predict.text:shard_text",
    "TrainingResult": "train.text:training_text",
    "Verification": "verify.api:shown_text",
}


def verb(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function one of the Python API: its arguments are checked by their annotations.

    Its errors speak of arguments instead of options.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python tells it best
        with python_words():
            hints = type_hints(function)
            for name, value in bound.arguments.items():
                _check(name, value, hints[name])
            if "progress" in bound.arguments:
                bound.arguments["progress"] = _told_in_python(bound.arguments["progress"])
            return function(*bound.args, **bound.kwargs)

    return call


@contextlib.contextmanager
def python_words() -> Iterator[None]:
    """Let what is raised speak of arguments: ``max_images=5`` instead of ``--max-images 5``."""
    try:
        yield
    except DeploykitError as exc:
        exc.message = in_python(exc.message)
        exc.hint = None if exc.hint is None else in_python(exc.hint)
        exc.args = (exc.message,)
        raise


def _told_in_python(progress: Progress) -> Progress:
    """A callback that gets notes in Python's words."""

    def tell(event: Step | Note) -> None:
        progress(Note(in_python(event.message)) if isinstance(event, Note) else event)

    return tell


def chosen_bundle(
    bundle: BundleLike | None,
    artifacts: PathLike | None,
    progress: Progress,
    *,
    packed: bool = False,
) -> Bundle:
    """The bundle that is meant, as it is now: a function may have added to it meanwhile.

    Raises:
        BundleError: There is none, or it is in one file and ``packed`` does not allow that.
    """
    if isinstance(bundle, Bundle):
        if bundle.packed is None:
            return open_bundle(bundle.folder)
        bundle = bundle.packed
    wanted = None if bundle is None else os.fspath(bundle)
    return find_bundle(wanted, optional_path(artifacts), progress, packed=packed)


def optional_path(path: PathLike | None) -> Path | None:
    """A path, where one was given."""
    return None if path is None else Path(path)


def option_text(value: SizeLike | ChannelsLike | None, separator: str) -> str | None:
    """A size or three channels as the command line takes them."""
    if value is None or isinstance(value, str):
        return value
    return separator.join(map(str, value)) if isinstance(value, Sequence) else str(value)


# Arguments ----------------------------------------------------------------------------------------


def _check(name: str, value: object, hint: Any) -> None:
    """Refuse an argument that is none of the kinds that its annotation names.

    Raises:
        UsageError: It is none, or an empty path.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if Path in kinds and value == "":
        raise UsageError(f"{name} is an empty path.", hint="The current folder is '.'.")
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"{name} has a null character: {value!r}.", hint="Leave it out.")
    if any(_is(value, kind) for kind in kinds):
        return
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    close = (
        difflib.get_close_matches(value, choices, 1, cutoff=0.7) if isinstance(value, str) else []
    )
    *others, last = dict.fromkeys(_words(kind, kinds) for kind in kinds)
    allowed = f"{', '.join(others)} or {last}" if others else last
    raise UsageError(
        f"{name} must be {allowed}, not {reprlib.repr(value)}.",
        hint=f"Did you mean {close[0]!r}?" if close else None,
    )


def _is(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        fits = isinstance(value, Sequence) and len(value) == len(inner)
        return fits and all(map(_is, value, inner))
    if origin is Sequence:
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        return listed and all(_is(each, inner[0]) for each in value)
    if origin is Callable:
        return callable(value)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if kind in (int, float):
        number = Integral if kind is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, os.PathLike if kind is Path else kind)


def _words(kind: Any, kinds: tuple[Any, ...]) -> str:
    """What a kind is called; a text beside a path is one."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(inner)}" if len(inner) > 1 else repr(inner[0])
    if origin is tuple:
        return f"{len(inner)} numbers"
    if origin is Sequence:
        return "a list of strings" if inner[0] is str else "a list of whole numbers"
    if Bundle in kinds and kind in (Path, str):
        return "its name" if kind is str else "its path"
    if kind is Path or (kind is str and Path in kinds):
        return "a path (str or Path)"
    names = {
        Bundle: "a bundle",
        Callable: "a function",
        Mapping: "a dict",
        bool: "True or False",
        float: "a number",
        int: "a whole number",
        str: "a string",
        type(None): "None",
    }
    return names[origin or kind]


# Words --------------------------------------------------------------------------------------------

_WORD = r"""(?:'[^']*'|"[^"]*"|[^\s`'"]*[^\s`'".,;:)])"""
#: What is the value of an option even in the middle of a sentence.
_SURE = (
    r"(?:[A-Z]+(?:x[A-Z]+|,[A-Z]+)*(?![\w-])|\d(?:[\w.,]*\w)?%?|[fb]p?f?(?:32|16)|int8"
    r"|bilinear|bicubic|nearest"
    r"|(?:onnxruntime-|tensorrt|openvino|rehearsal|cpu|cuda|sm\d)[\w-]*|[\w-]+\.\w+(?::\w+)?|\w+=[\w.,]*\w)"
)
_COMMANDS = {"build-trt": "build_engine"}
#: Options whose arguments have another name.
_RENAMED = {"arch-arg": "arch_args", "for": "cpu"}
_DIAGNOSES = ("stages", "layers")


def in_python(text: str) -> str:
    """Say the same to somebody who calls functions.

    ``deploykit verify --images DIR`` becomes ``deploykit.verify(images=DIR)``, and elsewhere
    ``--max-images 5`` becomes ``max_images=5``; options that no function has stay as they are.
    """
    whole, told, sure = _patterns()
    text = whole.sub(_call, text)
    for pattern in (told, sure):
        text = pattern.sub(lambda match: _arguments(match[0]), text)
    return text


@functools.cache
def _options() -> dict[str, set[bool]]:
    """The options that functions take as arguments: True of a switch, False of one with a value.

    ``--embeddings`` is a switch of ``export``, and has a value in ``predict``.
    """
    import deploykit

    found = {"no-diagnose": {True}, **{name: {False} for name in _RENAMED}}
    for name in filter(str.islower, deploykit.__all__):
        for argument, parameter in inspect.signature(getattr(deploykit, name)).parameters.items():
            is_switch = isinstance(parameter.default, bool)
            found.setdefault(argument.replace("_", "-"), set()).add(is_switch)
    return found


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """A whole command; options after a colon, with any values; options in a sentence."""
    import deploykit

    verbs = "|".join([*_COMMANDS, *filter(str.islower, deploykit.__all__)])
    switches = "|".join(name for name, kinds in _options().items() if False not in kinds)
    others = "|".join(name for name, kinds in _options().items() if False in kinds)
    option = rf"--(?:(?:{switches})(?![\w-])|(?:{others})(?![\w-])(?: (?!--)VALUE)?)"
    loose, strict = option.replace("VALUE", _WORD), option.replace("VALUE", _SURE)
    return (
        re.compile(rf"deploykit ({verbs})(?![\w-])((?: {loose})*)"),
        re.compile(rf"(?<=: ){loose}(?: {loose})*"),
        re.compile(rf"(?<![\w-]){strict}(?: {strict})*"),
    )


def _call(match: re.Match[str]) -> str:
    name, options = match[1], match[2]
    if any(f"--{each}" in options for each in _DIAGNOSES):
        name = "diagnose"
    function = f"deploykit.{_COMMANDS.get(name, name)}"
    return f"{function}({_arguments(options)})" if options else function


def _arguments(options: str) -> str:
    """``--images DIR --tf32`` => ``images=DIR, tf32=True``."""
    given: dict[str, list[str]] = {}
    for name, value in re.findall(rf"--([a-z][a-z0-9-]*)(?: (?!--)({_WORD}))?", options):
        given.setdefault(name, []).append(value)
    return ", ".join(_argument(name, values) for name, values in given.items())


def _argument(option: str, values: list[str]) -> str:
    """An option with its values: several if it was repeated, "" if it was named alone."""
    name = _RENAMED.get(option, option.replace("-", "_"))
    if True in _options()[option] and not any(values):
        return "diagnose=False" if option == "no-diagnose" else f"{name}=True"
    if option == "arch-arg" and all("=" in value for value in values):
        pairs = (value.split("=", 1) for value in values)
        return f"{name}={{{', '.join(f'{key!r}: {_literal(value)}' for key, value in pairs)}}}"
    if len(values) > 1:
        return f"{name}=[{', '.join(map(_literal, values))}]"
    return f"{name}={_literal(values[0])}" if values[0] else name


def _literal(value: str) -> str:
    """A value as Python writes it; what stands for one, ``DIR`` or ``HxW``, stays as it is."""
    if re.fullmatch(r"[A-Z]+(?:x[A-Z]+)?|[\d.]+", value):
        return value
    if re.fullmatch(r"[\d.]+(?:,[\d.]+)+", value):
        return f"({value.replace(',', ', ')})"
    if memory := re.fullmatch(r"(\d+)([KMG])iB", value):
        return f"{memory[1]} * 2**{10 * (1 + 'KMG'.index(memory[2]))}"
    return repr(value.strip("'\""))


# Results ------------------------------------------------------------------------------------------


def text_of(result: object) -> str:
    """What a result says, as its command does."""
    module, _, function = TEXTS[type(result).__name__].partition(":")
    words: Any = importlib.import_module(f"deploykit.commands.{module}")
    return in_python(getattr(words, function)(result))


def html_of(result: object) -> str:
    """The same as HTML: what the text draws as a table is one. Everything is escaped."""
    parts: list[str] = []
    lines = text_of(result).splitlines()
    while lines:
        count = _table_length(lines)
        if count:
            header, _, *rows = map(_cells, lines[:count])
            body = [_row(header, "th"), *(_row(row, "td") for row in rows)]
            parts.append(f"<table>{''.join(body)}</table>")
        else:
            count = next((i for i in range(1, len(lines)) if _table_length(lines[i:])), len(lines))
            plain = "\n".join(lines[:count])
            parts.append(f"<pre>{html.escape(plain)}</pre>")
        del lines[:count]
    return "".join(parts)


def _table_length(lines: Sequence[str]) -> int:
    """How many lines a table has that begins here; 0 where none does."""
    if len(lines) < 2 or not re.fullmatch(r"-+(?:\+-+)+", lines[1]):
        return 0
    columns = lines[1].count("+") + 1
    fits = (i == 1 or len(_cells(line)) == columns for i, line in enumerate(lines))
    return next((i for i, fit in enumerate(fits) if not fit), len(lines))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in f"{line} ".split(" | ")]


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
