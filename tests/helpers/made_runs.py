"""The folder of a run, without a run."""

from pathlib import Path

import msgspec
from made_fingerprints import FINGERPRINT

from deploykit.commands.predict.ledger import Ledger, Work
from deploykit.commands.predict.plan import Plan
from deploykit.images.scan import ImageFile
from deploykit.specs.session import SessionSpec

WORK = Work(host="here", seconds=0.5, stages={"decode": 0.25})
PLAN = Plan(
    run="deploykit predict",
    schema=1,
    fingerprint=FINGERPRINT,
    files=0,
    list_sha256="",
    skipped=0,
    shard_size=2,
    shared=False,
    session=SessionSpec(
        runtime="onnxruntime-cpu",
        graph="deploy/fp32.onnx",
        precision="fp32",
        device="CPU",
        input_size=(8, 8),
        classes=2,
    ),
    bundle="/bundle",
    root="/photos",
    outputs=("rows.csv",),
)


def begun(folder, names, **changes):
    """A run that lists files of these names."""
    ledger = Ledger(folder)
    files = [ImageFile(Path("/photos"), name) for name in names]
    ledger.begin(msgspec.structs.replace(PLAN, **changes), files)
    return ledger


def begun_with(folder, rows, count=None, **changes):
    """A run with rows of its first files, one shard after the other."""
    ledger = begun(folder, [row.path for row in rows], **changes)
    for shard in [*ledger.missing()]:
        part = rows[shard.start : min(shard.stop, len(rows) if count is None else count)]
        if part:
            ledger.write(shard.start, [(row, None) for row in part], WORK)
    return ledger
