"""``--format container``: a Dockerfile with all that it copies."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata, resources
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import MANIFEST_NAME
from deploykit.commands.package.request import PackageRequest, Written, plain_name
from deploykit.commands.package.wheel import distribution, write_wheel
from deploykit.commands.package.zipped import packed_files
from deploykit.errors import DependencyError
from deploykit.proof.auto import open_best
from deploykit.system.progress import Progress
from deploykit.system.text import command_line

_PORT = 8080
_KEYS = "/run/secrets/deploykit-api-keys"
_LOCK = "requirements.txt"
_SERVE = "serve"
#: The extra that a runtime needs.
_EXTRAS = {
    "onnxruntime-cuda": "cuda",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
}
#: What the image is, wherever it is packaged.
_LINUX = {
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "sys_platform": "linux",
}


def write(bundle: Bundle, made: Path, request: PackageRequest, progress: Progress) -> Written:
    """Write the bundle, deploykit as a wheel, the versions of what they need, and a Dockerfile.

    Raises:
        UsageError: The bundle's name is none for a command line in an image.
        ParityError: Nothing that could be served is proven here.
        DependencyError: A package is not installed here, so its version is not known.
    """
    name = plain_name(bundle)
    with open_best(bundle, progress=progress) as session:
        spec = session.spec
    lock = locked([_SERVE, *([_EXTRAS[spec.runtime]] if spec.runtime in _EXTRAS else [])])
    for file in (MANIFEST_NAME, *packed_files(bundle, progress)):
        target = made / name / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / file, target)
    wheel = write_wheel(made)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    (made / _LOCK).write_text("".join(f"{line}\n" for line in lock), "utf-8", newline="\n")
    templates = resources.files("deploykit.commands.package") / "templates"
    text = (templates / "Dockerfile.in").read_text("utf-8")
    values = {"python": python, "wheel": wheel.name, "name": name, "port": _PORT, "keys": _KEYS}
    filled = re.sub(r"\{([a-z]+)\}", lambda match: str(values[match[1]]), text)
    (made / "Dockerfile").write_text(filled, "utf-8", newline="\n")
    return Written(
        content=f"a Dockerfile that serves {name} by {spec.title}, on port {_PORT}",
        notes=(
            "it was built and run nowhere: build it, and ask it for your photos",
            f"{_LOCK} has the versions of this machine, for Python {python} on Linux (x86-64)",
            f"it starts with API keys, one a line, in {_KEYS}; or with --no-api-key",
        ),
        command=command_line(["docker", "build", "--tag", name.lower(), str(request.output)]),
    )


def locked(extras: Iterable[str]) -> list[str]:
    """What the installed deploykit needs with some extras, and what that needs: ``NAME==VERSION``.

    Raises:
        DependencyError: One of them is not installed here, or deploykit knows no such extra.
    """
    wanted = [*extras]
    known = distribution().metadata.get_all("Provides-Extra") or []
    option = f"deploykit[{','.join(wanted)}]"
    unknown = [extra for extra in wanted if extra not in known]
    if unknown:
        raise DependencyError(
            f"The deploykit that is installed has no extra {unknown[0]}.",
            hint=f'Install it again: pip install --upgrade "{option}"',
        )
    versions: dict[str, str] = {}
    seen: set[Requirement] = set()
    pending = [Requirement(option)]
    while pending:
        requirement = pending.pop()
        if requirement in seen:
            continue
        seen.add(requirement)
        name = canonicalize_name(requirement.name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError as exc:
            raise DependencyError(
                f"{name} is not installed here, and the container needs it.",
                hint=f'Install it: pip install "{option}"',
            ) from exc
        versions[name] = found.version
        pending += _needed_by(found, requirement.extras)
    del versions["deploykit"]
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _needed_by(package: metadata.Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    """What an installed package needs on Linux, with some extras."""
    for text in package.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        environments = [_LINUX | {"extra": extra} for extra in ("", *extras)]
        if marker is None or any(marker.evaluate(each) for each in environments):
            yield requirement
