"""What a bundle is compared with: the checkpoint's module, else its own canonical graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploykit.bundle.checkpoint_files import checkpoint_sha256
from deploykit.bundle.folder import CANONICAL_GRAPH, GOLDEN, Bundle
from deploykit.bundle.manifest import recorded_path
from deploykit.bundle.verdicts import ReferenceKind
from deploykit.errors import CheckpointError, DependencyError, UsageError
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.runtime.opener import open_module
from deploykit.specs.model import names_user_code
from deploykit.specs.session import Session
from deploykit.system.progress import Note, Progress
from deploykit.system.text import command_line

#: What to do where the reference is itself not proven.
EXPORT_PROVES = "Export the bundle again (--overwrite): that compares it with the checkpoint."


@dataclass(frozen=True)
class ReferenceRequest:
    """The reference that the user named on the command line.

    Attributes:
        arch: The architecture; None for the bundle's, if that is not the user's own code.
        checkpoint: The weights' file; None for the recorded one.
        arch_args: Further arguments of the architecture; None for the recorded ones.
        trust_pickle: Whether reading the checkpoint may run the code in it.
    """

    arch: str | None = None
    checkpoint: Path | None = None
    arch_args: Mapping[str, object] | None = None
    trust_pickle: bool = False

    @property
    def named(self) -> bool:
        """Whether the user named one, which then must work."""
        return self != ReferenceRequest()


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What something is compared with.

    Attributes:
        kind: What it is.
        description: What reports call it.
        is_recorded: Whether it stands for the bundle's own checkpoint, so that a verdict says
            something about the bundle. A module with other weights does not.
        reason: Why nothing can be proven by it; None when it can.
        module_reason: Why the module was not asked, where the canonical graph stands in for it.
        module_options: The options of ``verify`` with which the module is asked after all; empty
            where none helps.
    """

    kind: ReferenceKind
    description: str
    is_recorded: bool = True
    reason: str | None = None
    module_reason: str | None = None
    module_options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpenReference(Reference):
    """A reference that answers.

    Attributes:
        session: What answers.
    """

    session: Session


#: The answers that the export recorded.
GOLDEN_REFERENCE = Reference(kind="golden", description=f"answers recorded in {GOLDEN}")


def open_reference(bundle: Bundle, request: ReferenceRequest, progress: Progress) -> OpenReference:
    """Open the best reference there is.

    The module from the checkpoint, when the user names it, or when the architecture is not the
    user's own code and the recorded checkpoint is there unchanged; else the canonical graph on
    ONNX Runtime's CPU provider, with a note that says why.

    Raises:
        UsageError: A named architecture makes no sense for this bundle.
        InputError: A named checkpoint or architecture cannot be used.
    """
    reason = None if request.named else module_reason(bundle)
    options = () if reason is None else module_options(bundle)
    if reason is None:
        try:
            return module_reference(bundle, request)
        except (DependencyError, UsageError) as exc:
            # Who named nothing has made no mistake: the manifest's architecture is not known here.
            if request.named:
                raise
            reason = exc.message.rstrip(".")
    how = f"; this does:\n{bundle.command('verify', *options)}" if options else ""
    progress(Note(f"comparing with {CANONICAL_GRAPH}, not with the checkpoint: {reason}{how}"))
    return _graph_reference(bundle, reason, options)


def module_reason(bundle: Bundle) -> str | None:
    """Why the module cannot be made without being asked; None when it can."""
    architecture, checkpoint = bundle.manifest.architecture, bundle.manifest.checkpoint
    if names_user_code(architecture.name):
        return (
            f"the manifest names code of its own, {architecture.name}, which runs only when --arch "
            "names it"
        )
    if checkpoint.trusted_pickle:
        return "the checkpoint runs code when it is read, which --ckpt and --trust-pickle allow"
    return _checkpoint_reason(bundle)


def module_options(bundle: Bundle) -> tuple[str, ...]:
    """The options of ``verify`` that compare with the module where :func:`module_reason` forbids.

    FILE stands for a checkpoint that is not where it was.
    """
    manifest, checkpoint = bundle.manifest, recorded_checkpoint(bundle)
    name = manifest.architecture.name
    return (
        *(("--arch", name) if names_user_code(name) else ()),
        *("--ckpt", "FILE" if checkpoint is None else str(checkpoint)),
        *(("--trust-pickle",) if manifest.checkpoint.trusted_pickle else ()),
    )


def recorded_checkpoint(bundle: Bundle) -> Path | None:
    """The file that the bundle was exported from, where it is here, unchanged.

    Only then may what lies beside it be read, too.
    """
    recorded = recorded_path(bundle.manifest.checkpoint.path)
    return recorded if _checkpoint_reason(bundle) is None else None


def _checkpoint_reason(bundle: Bundle) -> str | None:
    """Why the recorded checkpoint is not read; None when it is here, unchanged."""
    recorded = bundle.manifest.checkpoint
    path = recorded_path(recorded.path)
    if path is None:
        return (
            f"the manifest's {recorded.path} is no full path on a disk of this machine, and is not "
            "followed; --ckpt names the checkpoint"
        )
    try:
        if not path.is_file():
            return f"{path} is not there; --ckpt names it elsewhere"
        sha256 = checkpoint_sha256(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    except CheckpointError as error:
        return error.message.rstrip(".")
    if sha256 != recorded.sha256:
        return f"{path} has changed since the export"
    return None


def _graph_reference(bundle: Bundle, reason: str, options: tuple[str, ...]) -> OpenReference:
    """The canonical graph, which stands for the checkpoint as far as it was proven itself."""
    session = open_candidate(bundle, Candidate(CANONICAL_GRAPH, "onnxruntime-cpu", "fp32"))
    spec = session.spec
    key = bundle.manifest.key_of(CANONICAL_GRAPH, spec.runtime, spec.precision, spec.device)
    known = [each for each in bundle.manifest.verdicts if each.key == key]
    proven = any(each.reference_kind == "module" and each.passed for each in known)
    return OpenReference(
        session=session,
        kind="graph",
        description=f"{CANONICAL_GRAPH} on {spec.runtime}",
        reason=None
        if proven
        else f"{CANONICAL_GRAPH}, the reference, is itself not proven against the checkpoint",
        module_reason=reason,
        module_options=options,
    )


def module_reference(bundle: Bundle, request: ReferenceRequest) -> OpenReference:
    """The module that is meant, with its weights.

    Of one that nobody named, :func:`module_reason` must have no reason against it.

    Raises:
        UsageError: A named architecture makes no sense, or pickles are trusted that nobody named.
        CheckpointError: The checkpoint cannot be used, or has other classes than the bundle.
        DependencyError: torch, or what makes the network, is not installed.
    """
    from deploykit.models.loading import load_model
    from deploykit.models.registry import resolve_architecture

    manifest = bundle.manifest
    recorded = manifest.architecture
    if request.trust_pickle and request.checkpoint is None:
        raise UsageError(
            "--trust-pickle is for a checkpoint that you name, not for one that a bundle names.",
            hint=f"Name it as well: {command_line(['--ckpt', manifest.checkpoint.path])}",
        )
    architecture = resolve_architecture(
        request.arch or recorded.name, allow_user_code=request.arch is not None
    )
    arch_args = request.arch_args
    if arch_args is None:
        arch_args = recorded.args if architecture.name == recorded.name else {}
    path = request.checkpoint or recorded_checkpoint(bundle)
    if path is None:
        raise CheckpointError(
            f"The recorded checkpoint is not used: {_checkpoint_reason(bundle)}.",
            hint="Name the checkpoint as well: --ckpt FILE",
        )
    if manifest.checkpoint.trusted_pickle and not request.checkpoint:
        raise CheckpointError(
            f"{path} holds more than weights: loading it would run code.",
            hint="If you made it yourself, name it in this command: --ckpt FILE --trust-pickle",
        )
    # The recorded checkpoint was loaded because its hash is the recorded one.
    sha256 = checkpoint_sha256(path) if request.checkpoint else manifest.checkpoint.sha256
    model = load_model(
        architecture,
        path,
        manifest.preprocessing.input_size,
        arch_args=arch_args,
        weights=manifest.checkpoint.weights if sha256 == manifest.checkpoint.sha256 else None,
        trust_pickle=request.trust_pickle,
    )
    if model.num_classes != recorded.classes:
        raise CheckpointError(
            f"{path} has {model.num_classes} classes; the bundle has {recorded.classes}."
        )
    return OpenReference(
        session=open_module(
            model.module, preprocessing=manifest.preprocessing, classes=recorded.classes
        ),
        kind="module",
        description=f"torch module {architecture.name} from {path.name} ({sha256[:12]})",
        is_recorded=architecture.name == recorded.name
        and sha256 == manifest.checkpoint.sha256
        and dict(arch_args) == recorded.args,
    )
