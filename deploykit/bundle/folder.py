"""Bundles: where things are in one, which one to use, and how a new one appears whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploykit.bundle.manifest import (
    LOCK_NAME,
    MANIFEST_NAME,
    PACKED_ENDING,
    Manifest,
    is_recorded,
    locked,
    read_manifest,
)
from deploykit.bundle.onnx_file import check_graph_file, check_meaning
from deploykit.errors import BundleError, GraphError, UsageError
from deploykit.specs.model import Precision
from deploykit.specs.value import Shown
from deploykit.system.files import home_of, refusal
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import command_line

CANONICAL_GRAPH = "model.onnx"
GOLDEN = "golden.npz"
#: Where graphs that failed their comparison are kept. No bundle's name begins with a dot.
FAILED = ".failed"
#: INT8 graphs beside ``deploy/int8.onnx``, which is for CPUs whose sums of products are exact: with
#: weights of 7 bits, for those that add them up in 16 bits; and symmetric, for engines.
INT8_AVX2_GRAPH = "deploy/int8-avx2.onnx"
INT8_TENSORRT_GRAPH = "deploy/int8-tensorrt.onnx"
_MAKE_ONE = (
    "Say where it is with --bundle or --artifacts, or make one: "
    "deploykit export --arch NAME --ckpt FILE"
)
_FORBIDDEN_IN_NAMES = frozenset('<>:"/\\|?*')


def deploy_graph(precision: Precision) -> str:
    """The deploy graph's path in a bundle, ``deploy/fp32.onnx``."""
    return f"deploy/{precision}.onnx"


@dataclass(frozen=True, repr=False)
class Bundle(Shown):
    """An exported model: a folder and what its manifest says.

    Attributes:
        folder: Where its files are.
        manifest: What it says of itself.
        packed: The ``.zip`` file that it was unpacked from, absolute; None for a folder.
    """

    folder: Path
    manifest: Manifest
    packed: Path | None = None

    @property
    def place(self) -> Path:
        """What opens it again: its folder, or the file that it is in."""
        return self.packed or self.folder

    @property
    def name(self) -> str:
        """The folder's name, which is how the command line calls it."""
        return self.folder.resolve().name

    def command(self, verb: str, *options: str) -> str:
        """A command on this bundle, and on no other that may be newer, for a shell."""
        return command_line(["deploykit", verb, "--bundle", str(self.place), *options])

    def deploy_graph(self, precision: Precision) -> str:
        """The deploy graph of a precision, relative to the bundle.

        Raises:
            BundleError: There is none.
        """
        graph = self.manifest.deploy.get(precision)
        if graph is None:
            have = ", ".join(self.manifest.deploy)
            raise BundleError(f"Bundle {self.name} has no {precision} graph; it has {have}.")
        return graph

    def checked(self, file: str) -> Path:
        """The path of a file that the manifest names, once it has been checked.

        Its hash must be the recorded one, and a graph have all its weights inside, and tell no
        labels and preprocessing but the manifest's.

        Args:
            file: Relative to the bundle, with ``/``: ``deploy/fp32.onnx``.

        Raises:
            BundleError: The manifest does not name it, or it is missing or changed, or has weights
                in another file, or the manifest was changed.
        """
        record = self.manifest.files.get(file)
        if record is None:
            names = ", ".join(self.manifest.files)
            raise BundleError(f"Bundle {self.folder} has no {file}; it has {names}.")
        path = self.folder / file
        try:
            if not is_recorded(path, record):
                raise self._changed(path)
            if path.suffix == ".onnx":
                self.check_description(file)
        except OSError as exc:
            raise BundleError(
                f"{path} cannot be read ({exc.strerror}).", hint=self._remedy(file)
            ) from exc
        except GraphError as exc:
            raise BundleError(exc.message, hint=self._remedy(file)) from exc
        return path

    def check_description(self, file: str) -> None:
        """Check what a graph tells of itself, without its hash.

        Raises:
            GraphError: It is no graph with its weights inside, or the manifest contradicts it.
            OSError: It cannot be read.
        """
        labels, preprocessing = self.manifest.labels, self.manifest.preprocessing
        path = self.folder / file
        check_meaning(str(path), check_graph_file(path), labels, preprocessing)

    def _changed(self, path: Path) -> BundleError:
        """Say that a file is not the recorded one, or that the bundle is another one by now."""
        file = path.relative_to(self.folder).as_posix()
        with contextlib.suppress(BundleError):
            if read_manifest(self.folder).files.get(file) != self.manifest.files[file]:
                return BundleError(
                    f"{path} was made anew meanwhile.", hint="Run the command again."
                )
        return BundleError(
            f"{path} is not the file that was exported: its size or its SHA-256 is not that of "
            "the manifest.",
            hint=self._remedy(file),
        )

    def _remedy(self, file: str) -> str:
        """How to get a file again: not all come from the export."""
        if file in (deploy_graph("int8"), INT8_AVX2_GRAPH, INT8_TENSORRT_GRAPH):
            return "Copy the bundle again, or make this graph again: deploykit quantize"
        if file == self.manifest.deploy.get("fp16"):
            again = "deploykit quantize --precision fp16"
            return f"Copy the bundle again, or make this graph again: {again}"
        return "Copy the bundle again, or export it again."


def require_unchanged(bundle: Bundle, manifest: Manifest, file: str) -> None:
    """Refuse to add to a bundle what was made from a file that it no longer has.

    Args:
        bundle: As it was when the work began.
        manifest: As it is now.
        file: What the work was made from.

    Raises:
        BundleError: The bundle was exported again meanwhile.
    """
    if manifest.files.get(file) != bundle.manifest.files[file]:
        raise BundleError(
            f"{bundle.folder} was changed meanwhile: {file} is not the one that was used.",
            hint="Run the command again.",
        )


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle by its folder, or by the ``.zip`` file that ``package`` has made of it.

    Raises:
        BundleError: There is none, its manifest is damaged, or its folders lead elsewhere; or the
            file is no bundle, or not whole.
    """
    if _is_packed(folder):
        from deploykit.bundle.packed import unpacked

        place = folder.absolute()
        folder = unpacked(place)
        return Bundle(folder, read_manifest(folder), place)
    if _is_being_replaced(folder):
        raise BundleError(
            f"{folder} is not there: an export was killed while it replaced it.",
            hint=_how_to_restore(folder),
        )
    manifest = read_manifest(folder)
    _check_links(folder)
    return Bundle(folder, manifest)


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == PACKED_ENDING and path.is_file()


def _check_links(folder: Path) -> None:
    """Refuse a bundle in which what is written would land outside."""
    for name in (LOCK_NAME, "cache", "deploy", "engines"):
        path = folder / name
        # Unlike Path.resolve, it takes a link to itself for an end.
        if os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder):  # noqa: PTH120
            raise BundleError(
                f"{path} leads out of the bundle, and so would what is written there.",
                hint="Copy the bundle with what its links lead to (cp -rL), and use the copy.",
            )


def find_bundle(
    wanted: str | None,
    artifacts: Path | None = None,
    progress: Progress = silent,
    *,
    packed: bool = False,
) -> Bundle:
    """Open the bundle that was named, or the one that must be meant.

    Args:
        wanted: A name below ``artifacts`` or a folder's path; None for the one bundle there is, or
            the newest.
        artifacts: The folder of all bundles; None for the default.
        progress: Told which bundle is used where none was named.
        packed: Whether a bundle in one file will do, to which nothing can be added.

    Raises:
        BundleError: There is none, or it is in one file and that will not do.
    """
    home = artifacts or default_artifacts()
    if wanted is not None and _is_packed(Path(wanted)):
        if not packed:
            raise BundleError(
                f"{wanted} is a file, and this command adds to a bundle's folder.",
                hint="Unpack it, and name the folder.",
            )
        return open_bundle(Path(wanted))
    if wanted is not None:
        is_path = Path(wanted).name != wanted or (Path(wanted) / MANIFEST_NAME).is_file()
        in_home = (home / wanted / MANIFEST_NAME).is_file()
        folder = Path(wanted) if is_path and not in_home else home / wanted
        if folder.is_file():
            raise BundleError(f"{folder} is a file.", hint=f"Give its folder: {folder.parent}")
        if not (is_path or folder.exists() or is_replaced(folder)):
            names = sorted(each.name for each in _bundle_folders(home))
            raise BundleError(
                f"There is no bundle {wanted} in {home}.",
                hint=f"There are: {', '.join(names)}." if names else _MAKE_ONE,
            )
        return open_bundle(folder)
    return _find_newest(home, progress)


def _find_newest(home: Path, progress: Progress) -> Bundle:
    """Open the newest bundle; one that cannot be opened is skipped if there is another."""
    bundles, damaged = [], []
    for folder in sorted(_bundle_folders(home)):
        try:
            bundles.append(open_bundle(folder))
        except BundleError as exc:
            damaged.append(exc)
    interrupted = []
    for folder in _replaced_bundles(home):
        try:
            interrupted += [folder] * _is_being_replaced(folder)
        except BundleError as exc:
            damaged.append(exc)
    if not bundles:
        hints = [_how_to_restore(folder) for folder in interrupted]
        none = BundleError(f"There is no bundle in {home}.", hint="\n".join(hints) or _MAKE_ONE)
        raise damaged[0] if damaged else none
    for error in damaged:
        progress(Note(f"skipped: {error.message}"))
    for folder in interrupted:
        progress(Note(f"skipped: {folder} is not there. {_how_to_restore(folder)}"))
    newest = max(bundles, key=lambda bundle: (bundle.manifest.created, bundle.name))
    if len(bundles) == 1:
        progress(Note(f"using bundle {newest.folder}"))
    else:
        which = f"the newest of {len(bundles)} bundles: {newest.folder}"
        progress(Note(f"using {which} (--bundle chooses)"))
    return newest


def _bundle_folders(home: Path) -> list[Path]:
    """The folders with a manifest, or in which nobody lets us look for one."""
    try:
        folders = [folder for folder in home.iterdir() if not folder.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise BundleError(
            f"The folder of all bundles {home} cannot be read: {exc.strerror}.",
            hint="Check its permissions, or name another with --artifacts.",
        ) from exc
    return [folder for folder in folders if _may_be_bundle(folder)]


def _may_be_bundle(folder: Path) -> bool:
    try:
        (folder / MANIFEST_NAME).stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def check_bundle_name(name: str) -> str:
    """Refuse a name that is no plain folder name on every system.

    Raises:
        UsageError: It is empty, hidden, or has a character that some system forbids.
    """
    bad = sorted({c for c in name if c in _FORBIDDEN_IN_NAMES or ord(c) < 32})
    if bad or not name or name.startswith(".") or name.endswith((" ", ".")):
        reason = f": it contains {' '.join(map(repr, bad))}" if bad else ""
        raise UsageError(f"{name!r} cannot name a bundle{reason}.", hint="Choose another --name.")
    return name


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse early what :func:`new_bundle` would refuse at the end.

    Raises:
        BundleError: A bundle is there and may not be replaced, or something else is.
    """
    with _locked(folder):
        _undo_replacement(folder)
    _check_free(folder, overwrite=overwrite)


def _check_free(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not (folder / MANIFEST_NAME).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(
            f"{folder} exists and is not a bundle.", hint="Choose another --name or --artifacts."
        )
    if not overwrite and (folder / MANIFEST_NAME).is_file():
        raise BundleError(
            f"The bundle {folder} exists.",
            hint="Replace it with --overwrite, or choose another --name.",
        )


@contextlib.contextmanager
def new_bundle(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Write a bundle beside its final name; it appears there whole or not at all.

    Args:
        folder: The final name.
        overwrite: Whether a bundle that is there may be replaced; it stays until the new is whole.

    Yields:
        The folder to write into.

    Raises:
        BundleError: See :func:`check_free`; also when another process made the bundle meanwhile.
    """
    check_free(folder, overwrite=overwrite)
    with home_of(folder) as beside:
        made = beside / folder.name
        made.mkdir()
        yield made
        with _locked(folder):
            _undo_replacement(folder)
            _check_free(folder, overwrite=overwrite)
            try:
                _publish(made, folder)
            finally:
                _undo_replacement(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a bundle's lock while it is replaced; where bundles are not yet kept, none is needed."""
    try:
        with contextlib.ExitStack() as lock:
            while folder.parent.is_dir():
                # Whoever made the home may just have removed it, or be making it again.
                with contextlib.suppress(FileNotFoundError, FileExistsError):
                    lock.enter_context(locked(folder, replacing=True))
                    break
            yield
    except OSError as exc:
        raise BundleError(
            f"{folder.parent} cannot be written to ({refusal(exc)}).",
            hint="Make it writable, or choose another --artifacts.",
        ) from exc


def _publish(made: Path, folder: Path) -> None:
    """Rename a whole bundle into its place, and the one that was there out of the way."""
    replaced = _replaced(folder)
    try:
        if folder.exists():
            _remove(replaced)  # an older replacement was killed late
            folder.replace(replaced)
        made.replace(folder)
    except OSError as exc:
        raise BundleError(
            f"{folder} could not be put in place ({exc.strerror}): another program uses it, "
            "or another export made it meanwhile.",
            hint="Close what uses it and export again; what was there is unchanged.",
        ) from exc
    _remove(replaced)


def keep_failed(made: Path, folder: Path) -> Path:
    """Keep what failed its comparison, for a closer look: it is no bundle, and not taken for one.

    Args:
        made: The folder with the graphs, without a manifest; it is moved.
        folder: The bundle's folder, whether there is one or not.

    Returns:
        Where it is now, ``.failed/NAME`` beside the bundle. What failed before is replaced.

    Raises:
        BundleError: It cannot be moved; it is where it was.
    """
    kept = folder.with_name(FAILED) / folder.name
    try:
        kept.parent.mkdir(exist_ok=True)
    except OSError as exc:
        raise BundleError(f"{kept.parent} cannot be made ({exc.strerror}).") from exc
    _publish(made, kept)
    return kept


def default_artifacts() -> Path:
    """The home of bundles: ``DEPLOYKIT_ARTIFACTS``, else ``artifacts`` in the current folder."""
    return Path(os.environ.get("DEPLOYKIT_ARTIFACTS") or "artifacts")


def _replaced(folder: Path) -> Path:
    """Where a bundle waits while another takes its place."""
    folder = folder.absolute()
    return folder.with_name(f".{folder.name}.replaced")


def is_replaced(folder: Path) -> bool:
    """Whether a bundle waits for another that is to take its place."""
    return _replaced(folder).is_dir()


def _replaced_bundles(home: Path) -> list[Path]:
    """The names of the bundles of which one waits."""
    waiting = sorted(home.glob(f".*.replaced/{MANIFEST_NAME}"))
    return [home / path.parent.name[1:].removesuffix(".replaced") for path in waiting]


def _is_being_replaced(folder: Path) -> bool:
    """Whether a replacement ended between its two renames; one that is under way is waited for.

    Raises:
        BundleError: It was waited for in vain.
    """
    if folder.exists() or not is_replaced(folder):
        return False
    with contextlib.suppress(OSError), locked(folder):
        pass
    return not folder.exists()


def _how_to_restore(folder: Path) -> str:
    replaced = _replaced(folder)
    return f"The old bundle is whole: rename {replaced} to {folder.name}, or export again."


def _remove(replaced: Path) -> None:
    """Remove a bundle that was replaced; of a link to one, the link."""
    if replaced.is_symlink():
        with contextlib.suppress(OSError):
            replaced.unlink()
    shutil.rmtree(replaced, ignore_errors=True)


def _undo_replacement(folder: Path) -> None:
    """Bring the old bundle back if a replacement ended between its two renames."""
    replaced = _replaced(folder)
    if not replaced.is_dir():
        return
    if (folder / MANIFEST_NAME).is_file():
        _remove(replaced)  # that replacement was killed late
        return
    with contextlib.suppress(OSError):
        folder.rmdir()  # somebody made it meanwhile, and it is empty
    if not folder.exists():
        replaced.replace(folder)
