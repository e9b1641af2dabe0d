"""onnxruntime-web, which runs the graph in a browser: from npm, or from a folder that has it."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from deploykit.errors import InputError, MissingError
from deploykit.system.files import read_file
from deploykit.system.progress import Progress, Step, silent

VERSION = "1.30.0"
#: Of npm's archive of that version: its SHA-512, as npm's registry and lock files have it.
INTEGRITY = "sha512-" + (
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
#: What the page loads of it, with the SHA-256 of each: the smallest build, which computes on the
#: CPU, and its WebAssembly.
FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
_PACK = f"npm pack onnxruntime-web@{VERSION}"
_OTHERWISE = (
    f"Or get it where there is npm and a network, unpack it (tar -xzf), copy it here, and name the "
    f"folder with --onnxruntime-web FOLDER; this gets it: {_PACK}"
)
_SECONDS = 300


def copy_runtime(folder: Path, source: Path | None = None, progress: Progress = silent) -> None:
    """Copy what the page needs of onnxruntime-web into a folder, each file checked by its hash.

    Args:
        folder: Where to; it is there.
        source: A folder with the package, unpacked; None to ask npm.
        progress: Called before npm is asked.

    Raises:
        MissingError: There is no npm, or it does not get the package.
        InputError: A file is missing, or is not that of the version.
        OSError: The system fails to write.
    """
    if source is not None:
        contents = {name: _read(source, name) for name in FILES}
    else:
        progress(Step("fetching", detail=f"onnxruntime-web {VERSION}"))
        contents = _from_npm()
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != FILES[name]:
            raise InputError(
                f"{name} of {source or 'npm'} is not that of onnxruntime-web {VERSION}: its "
                "SHA-256 is another.",
                hint=f"Take this version: {_PACK}",
            )
        (folder / name).write_bytes(content)


def _read(source: Path, name: str) -> bytes:
    """A file of the package, of its ``dist/``, or of another page's ``runtime/``."""
    for folder in (source, source / "dist", source / "package" / "dist"):
        try:
            return read_file(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            raise InputError(
                f"{folder / name} cannot be read: {exc.strerror}.",
                hint="Let it be a file that you may read.",
            ) from exc
    raise InputError(
        f"{source} has no {name}, which is a part of onnxruntime-web {VERSION}.",
        hint=f"Name the folder that npm's archive unpacks to; this gets it: {_PACK}",
    )


def _from_npm() -> dict[str, bytes]:
    """The files, from npm's archive, once its hash is the pinned one."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingError(
            f"npm is not installed, and the page needs onnxruntime-web {VERSION}, which comes "
            "through it.",
            hint=f"Install Node.js, which has npm. {_OTHERWISE}",
        )
    # In a folder of its own: npm would read the settings of a project that it is called in.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _pack(npm, folder)
        archives = list(folder.glob("*.tgz"))
        if len(archives) != 1:
            raise MissingError(f"npm wrote {len(archives)} archives, not one.", hint=_OTHERWISE)
        data = archives[0].read_bytes()
        found = f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"
        if found != INTEGRITY:
            raise InputError(
                f"What npm gave as onnxruntime-web {VERSION} is not that: its hash is {found}, not "
                f"{INTEGRITY}.",
                hint="Look which registry npm asks: npm config get registry",
            )
        with tarfile.open(archives[0]) as archive:
            return {each: _member(archive, f"package/dist/{each}") for each in FILES}


def _pack(npm: str, folder: Path) -> None:
    """Let npm get its archive into a folder."""
    command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--ignore-scripts"]
    try:
        done = subprocess.run(  # noqa: S603  # npm itself, with our own words
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise MissingError(f"npm did not do its work: {exc}.", hint=_OTHERWISE) from exc
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise MissingError(
            f"npm does not get onnxruntime-web {VERSION}: "
            f"{'; '.join(reasons[:3]) or f'it ended with {done.returncode}'}.",
            hint=_OTHERWISE,
        )


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    return b"" if file is None else file.read()  # no folder's hash is that of the file
