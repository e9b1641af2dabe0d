"""What a session gets to see of files, through the pipeline of a prediction."""

import msgspec
import numpy as np
from fake_session import FakeSession
from odd_files import encoded
from PIL import Image

from deploykit.images.scan import scan_images
from deploykit.inference.pipeline import answer_files
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.threads import StageClock

PREPROCESSING = Preprocessing(resize=(8, 8))
PIXELS = 8 * 8 * 3


def answers(source, *, concurrent=True, batch_size=4):
    """By file name, in the order of the rows: the failure, or the very pixels the session got."""
    session = FakeSession(lambda images: images.reshape(len(images), PIXELS), classes=PIXELS)
    # On the CPU several threads run it at once, on a device one.
    session._spec = msgspec.structs.replace(session.spec, concurrent=concurrent)
    found = []
    for batch in answer_files(
        scan_images(source).files,
        PREPROCESSING,
        session,
        batch_size=batch_size,
        workers=2,
        clock=StageClock(),
    ):
        logits = iter(batch.logits)
        for file, failure in zip(batch.files, batch.failures, strict=True):
            found.append((file.name, next(logits) if failure is None else failure))
        assert next(logits, None) is None
    assert len(dict(found)) == len(found), "a file has two rows"
    return dict(found)


def as_in_training(path):
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32).reshape(PIXELS)


def write_photo(path):
    path.write_bytes(encoded("PNG"))
    return path
