"""From what many processes have predicted to tables, when no row is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import sha256_of
from deploykit.commands.predict.job import checked_summary, write_outputs
from deploykit.commands.predict.ledger import Ledger
from deploykit.commands.predict.outputs import only_writer, planned_outputs
from deploykit.commands.predict.plan import path_of
from deploykit.commands.predict.provenance import check_replaceable
from deploykit.commands.predict.tally import PredictionSummary
from deploykit.commands.python import PathLike
from deploykit.errors import BundleError, InputError
from deploykit.specs.value import Value
from deploykit.system.cloud import as_path
from deploykit.system.files import replacing
from deploykit.system.progress import Progress, silent

if TYPE_CHECKING:
    from deploykit.commands.predict.outputs import Outputs

_SUCCESS = "_SUCCESS.json"


class _Success(Value, frozen=True):
    """Says that a run in shards is finished.

    Attributes:
        run: What the file is, for whoever finds it.
        schema: The version of this layout.
        plan: The plan's digest.
        rows: How many there are, one a file.
        outputs: The SHA-256 of each file that was written, by its name.
    """

    run: Literal["deploykit predict"]
    schema: Literal[1]
    plan: str
    rows: int
    outputs: dict[str, str]


def collect(
    run: PathLike,
    *,
    bundle: PathLike | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PredictionSummary:
    """Make the tables of a run in shards, and say in its folder that it is finished.

    Args:
        run: The run's folder: ``predictions.csv.run``.
        bundle: The bundle's folder, where it is not at its place any more.
        overwrite: Whether to replace what another run wrote.
        progress: Called before each file.

    Raises:
        InputError: There is no run, not each file has its row, or the system fails to write.
        BundleError: There is no such bundle, or it is another one.
        UsageError: An output is another run's; or somebody else is collecting.
        ImagesError: Not one file has a prediction.
    """
    folder = as_path(run)
    # Its name and what it is in count, of ``.`` too.
    ledger = Ledger(folder.resolve() if folder.name in ("", "..") else folder)
    if ledger.plan is None:
        raise InputError(
            f"{folder} holds no run.",
            hint="Name the folder beside the first output: predictions.csv.run",
        )
    plan = ledger.plan
    opened = open_bundle(path_of(plan.bundle) if bundle is None else Path(bundle))
    record = opened.manifest.files.get(plan.session.graph)
    if record is None or record.sha256 != plan.fingerprint.sha256:
        raise BundleError(
            f"{opened.folder} is not the bundle that the rows come from: its "
            f"{plan.session.graph} is another.",
            hint="Name that bundle: --bundle PATH",
        )
    outputs = planned_outputs(ledger, overwrite=overwrite)
    with only_writer(outputs.tables[0]):
        ledger.check_list()
        if not overwrite:
            check_replaceable(outputs.files, plan.fingerprint)
        summary = write_outputs(ledger, opened, outputs, progress)
        if plan.shared:
            _write_success(ledger, outputs)
        else:
            ledger.remove()
    return checked_summary(summary)


def _write_success(ledger: Ledger, outputs: Outputs) -> None:
    success = _Success(
        run="deploykit predict",
        schema=1,
        plan=ledger.made.digest,
        rows=ledger.made.files,
        outputs={path.name: sha256_of(path) for path in outputs.files},
    )
    path = ledger.folder / _SUCCESS
    try:
        with replacing(path) as partial:
            partial.write_bytes(msgspec.json.encode(success) + b"\n")
    except OSError as exc:
        raise InputError(
            f"Writing {path} failed: {exc.strerror or exc}.",
            hint="Check its permissions, and the free space on its disk.",
        ) from exc
