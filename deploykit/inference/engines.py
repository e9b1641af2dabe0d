"""A bundle's TensorRT engines: which there are, which can run here, and how one is opened."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploykit.bundle.folder import Bundle
from deploykit.engine.passport import Passport, check_plan, passport_path, read_passport, reason
from deploykit.errors import BundleError, DeviceError, GraphError
from deploykit.runtime.opener import open_engine
from deploykit.specs.engine import TensorRT
from deploykit.specs.session import Session
from deploykit.system.files import read_file
from deploykit.system.gpu import need_gpu

BUILD_AGAIN = (
    "Delete it and its passport, and the next build forgets it; or build it again, with the "
    "options that its name tells: deploykit build-trt"
)


@dataclass(frozen=True)
class Engine:
    """An engine of a bundle.

    Attributes:
        file: Relative to the bundle, ``engines/....engine``.
        passport: What it is, and where it runs.
    """

    file: str
    passport: Passport


def engines_of(
    bundle: Bundle,
    *,
    on_damage: Callable[[BundleError], None] | None = None,
) -> list[Engine]:
    """The engines of a bundle, the newest first.

    Args:
        bundle: The bundle.
        on_damage: Told of an engine that cannot be used, which is then skipped.

    Raises:
        BundleError: A passport is missing or damaged, or not that of its engine or of the bundle's
            graph; without ``on_damage``.
    """
    engines = []
    for file in reversed(bundle.manifest.engines):
        try:
            engines.append(_read_engine(bundle, file))
        except BundleError as exc:
            if on_damage is None:
                raise
            on_damage(exc)
    return engines


def engine_files(bundle: Bundle) -> set[str]:
    """The engines and their passports, whether they are there or not."""
    return {name for file in bundle.manifest.engines for name in _pair(file)}


def engines_not_copied(bundle: Bundle) -> set[str]:
    """The engines and their passports that a copy of a bundle was made without."""
    pairs = map(_pair, bundle.manifest.engines)
    absent = (pair for pair in pairs if not any((bundle.folder / each).exists() for each in pair))
    return set(itertools.chain.from_iterable(absent))


def _pair(file: str) -> tuple[str, str]:
    return file, passport_path(Path(file)).as_posix()


def engines_outdated(before: Bundle, now: Bundle) -> tuple[Engine, ...]:
    """The engines that a change of a bundle's graphs has made useless, the newest first.

    Args:
        before: The bundle as it was. What was damaged then is no news.
        now: The same with other graphs.
    """
    damaged: list[BundleError] = []
    useful = {engine.file for engine in engines_of(now, on_damage=damaged.append)}
    return tuple(
        engine
        for engine in engines_of(before, on_damage=damaged.append)
        if engine.file in now.manifest.engines and engine.file not in useful
    )


def named_engine(bundle: Bundle, name: str) -> Engine:
    """The engine that a user names by its path in the bundle or its file name.

    Raises:
        BundleError: There is none of that name, or it is damaged.
    """
    wanted = Path(name).name  # however much of the path is given
    for file in bundle.manifest.engines:
        if wanted == Path(file).name:
            return _read_engine(bundle, file)
    have = ", ".join(Path(file).name for file in bundle.manifest.engines) or "none"
    raise BundleError(
        f"Bundle {bundle.name} has no engine {wanted}; it has {have}.",
        hint="Name one of these." if bundle.manifest.engines else "Build one: deploykit build-trt",
    )


def open_bundle_engine(bundle: Bundle, engine: Engine) -> Session:
    """Open an engine, once its passport and its hash have been checked.

    Raises:
        DeviceError: It cannot run here: no GPU, another GPU, another TensorRT.
        DependencyError: TensorRT is not installed.
        BundleError: The engine is missing, damaged, or was built from another graph; or the
            manifest contradicts its graph.
    """
    _check_graph(bundle, engine)
    passport, manifest = engine.passport, bundle.manifest
    tensorrt = need_flavour(engine)
    path = _checked(bundle, engine.file)
    try:
        plan = read_file(path, limit=manifest.files[engine.file].bytes)
    except OSError as exc:
        raise BundleError(f"{path} cannot be read ({exc.strerror}).", hint=BUILD_AGAIN) from exc
    damage = check_plan(plan, passport.flavour)
    if damage is not None:
        raise BundleError(f"{engine.file}: {damage}.", hint=BUILD_AGAIN)
    return open_engine(
        tensorrt,
        plan,
        name=engine.file,
        precision=passport.precision,
        profile=passport.profile,
        preprocessing=manifest.preprocessing,
        labels=manifest.labels,
        cache=bundle.folder / "cache" / f"{passport.engine}.runtime",
    )


def _check_graph(bundle: Bundle, engine: Engine) -> None:
    """Check that the manifest says of labels, head and preprocessing what the graph says.

    An engine tells nothing of these itself. A copy without the graph has nothing to check by.
    """
    try:
        bundle.check_description(engine.passport.deploy_graph)
    except FileNotFoundError:
        return
    except (GraphError, OSError) as exc:
        raise BundleError(str(exc), hint="Copy the bundle again, or export it again.") from exc


def need_flavour(engine: Engine) -> TensorRT:
    """The TensorRT that runs an engine here, as far as its passport tells.

    Raises:
        DeviceError: It cannot run here: no GPU, another GPU, another TensorRT.
        DependencyError: TensorRT is not installed.
    """
    from deploykit.engine.flavour import open_flavour

    gpu = need_gpu()
    tensorrt = open_flavour(engine.passport.flavour)
    against = reason(engine.passport, tensorrt_version=tensorrt.version, gpu=gpu)
    if against is not None:
        raise DeviceError(against.message, hint=against.hint)
    return tensorrt


def _read_engine(bundle: Bundle, file: str) -> Engine:
    """Read an engine's passport, and see that it is this engine's, built from the bundle's graph.

    Raises:
        BundleError: It is missing or damaged, or another engine's, or the graph is another one.
    """
    passport = read_passport(_checked(bundle, passport_path(Path(file)).as_posix()))
    files = bundle.manifest.files
    if not (bundle.folder / file).is_file():
        raise BundleError(f"{bundle.folder / file} is not there.", hint=BUILD_AGAIN)
    if (passport.engine, passport.engine_sha256) != (Path(file).name, files[file].sha256):
        raise BundleError(f"The passport beside {file} is not this engine's.", hint=BUILD_AGAIN)
    graph = files.get(passport.deploy_graph)
    if graph is None or graph.sha256 != passport.deploy_graph_sha256:
        raise BundleError(
            f"{file} was built from another {passport.deploy_graph} than the bundle has now.",
            hint=BUILD_AGAIN,
        )
    return Engine(file, passport)


def _checked(bundle: Bundle, file: str) -> Path:
    try:
        return bundle.checked(file)
    except BundleError as exc:
        raise BundleError(exc.message, hint=BUILD_AGAIN) from exc
