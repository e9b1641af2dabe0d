"""One self-contained HTML file: what every page shares.

A page carries its styles, its scripts and its data, and asks nobody for anything: its Content
Security Policy (https://www.w3.org/TR/CSP3/) lets only the styles and scripts that stand in it run,
known by their hashes, and forbids every request. Names and reasons that strangers chose travel as
JSON and reach the page as text: the policy also forbids scripts to turn text into markup
(https://www.w3.org/TR/trusted-types/).
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deploykit.errors import InputError
from deploykit.html import words
from deploykit.system.files import check_ours, check_page_path, replacing
from deploykit.system.text import bound, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from jinja2 import Environment
    from markupsafe import Markup

_SHARED = resources.files("deploykit.html") / "templates"
_BASE_STYLES = ("base.css",)
_BASE_SCRIPTS = ("dom.js", "theme.js")


def check_page(path: Path, command: str) -> None:
    """Check that a command can write its page, and that nothing else has the page's name.

    Args:
        path: The page.
        command: ``verify``.

    Raises:
        UsageError: See :func:`deploykit.system.files.check_destination` and ``check_ours``.
    """
    check_page_path(path)
    check_ours(path, "page", page_mark(command))


def page_mark(command: str) -> str:
    """What stands near the beginning of every page of a command, and of nothing else."""
    return f'<meta name="generator" content="deploykit {command}">'


def write_document(path: Path, pieces: Iterable[str]) -> None:
    """Write a page piece by piece; one that is there is replaced when the new one is whole.

    Args:
        path: The page.
        pieces: Its text. A character that UTF-8 does not have is written as its escape.

    Raises:
        InputError: The system fails to write it: the disk may be full.
    """
    try:
        with (
            replacing(path) as partial,
            # The policy's hashes are of texts with this line end.
            partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
        ):
            file.writelines(pieces)
    except OSError as exc:
        raise InputError(
            f"Writing {path} failed: {exc.strerror or exc}.",
            hint="Check the folder's permissions and the free space on its disk.",
        ) from exc


def render(
    package: str,
    template: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    context: Mapping[str, Any],
    allowed: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[str]:
    """Render a template that extends ``base.html.j2``, piece by piece.

    Args:
        package: The command whose ``templates/`` these are, with the shared ones beside them.
        template: The template's name.
        styles: The style sheets that it needs beside the base's.
        scripts: The scripts that it needs beside the base's. All of them make one module: what an
            earlier one defines, a later one uses.
        context: What the template speaks of.
        allowed: What the page may do beside what every page may: more sources of the policy's
            directives, ``{"connect-src": "'self'"}`` of one that reads files beside it.

    Yields:
        The document's text, in order; what the context generates is asked for as it is needed.
    """
    from markupsafe import Markup

    read = _reader(package)
    style = "\n".join(map(read, (*_BASE_STYLES, *styles)))
    script = "\n".join(map(read, (*_BASE_SCRIPTS, *scripts)))
    yield from (
        _environment(read)
        .get_template(template)
        .generate(
            context,
            generator=Markup(page_mark(package.rpartition(".")[2])),  # noqa: S704  # ours
            policy=_policy(style, script, allowed),
            style=Markup(style),  # noqa: S704  # ours, and as plain as a style sheet
            script=Markup(script),  # noqa: S704  # ours
        )
    )


def script_json(value: object) -> Markup:
    """Write a value as JSON that can stand in a ``script`` element.

    Of HTML's own characters none is left that could end the element or begin a comment, and of
    others only ASCII, so that half a surrogate pair survives too.
    """
    from markupsafe import Markup

    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704  # escaped for where it goes


#: What every template may call.
_TEMPLATE_FUNCTIONS = (
    bound,
    words.duration,
    words.number,
    words.percent,
    words.power_of_ten,
    words.sentence_of,
    words.stranger,
    words.visible,
    counted,
    script_json,
)


def _environment(read: Callable[[str], str]) -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {each.__name__: each for each in _TEMPLATE_FUNCTIONS}
    return environment


def _reader(package: str) -> Callable[[str], str]:
    """Reads a file of a command's ``templates/``, or else of those that every page shares."""
    own = resources.files(package) / "templates"

    def read(name: str) -> str:
        file = own / name
        return (file if file.is_file() else _SHARED / name).read_text(encoding="utf-8")

    return read


def _policy(style: str, script: str, allowed: Mapping[str, str]) -> str:
    nothing = "'none'"
    directives = {
        "default-src": nothing,
        "img-src": "data:",
        "style-src": f"'{_source_hash(style)}'",
        "script-src": f"'{_source_hash(script)}'",
        "base-uri": nothing,
        "form-action": nothing,
        "require-trusted-types-for": "'script'",
        "trusted-types": nothing,
    }
    for name, sources in allowed.items():
        before = directives.get(name, nothing)
        directives[name] = sources if before == nothing else f"{before} {sources}"
    return "; ".join(f"{name} {sources}" for name, sources in directives.items())


def _source_hash(text: str) -> str:
    """A source as the policy names it: ``sha256-...``."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
