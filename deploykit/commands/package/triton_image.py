"""``--preprocess``: the models by which a repository takes image files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from deploykit.bundle.folder import Bundle
from deploykit.commands.package.triton_config import LABELS, write_config
from deploykit.commands.package.wheel import write_wheel
from deploykit.images.decode import decoded_rgb
from deploykit.images.preprocess import preprocess
from deploykit.specs.tensors import IMAGE_FILE

#: What decoding and resizing import. NumPy is whichever the server's Python backend works with.
_REQUIRED = ("msgspec", "pillow")
#: Processes that decode: each takes one core.
_DECODERS = 2
_CHECK_SIZE = (157, 211)


def write_image_models(
    bundle: Bundle, made: Path, model: Mapping[str, Any], labels: bytes
) -> list[str]:
    """Write the model that decodes and the ensemble that joins it to the network.

    Args:
        bundle: The bundle.
        made: The repository.
        model: The network's configuration.
        labels: Its label file.

    Returns:
        What the user has to know.
    """
    (pixels,) = model["input"]
    decoder, ensemble = f"{bundle.name}_preprocess", f"{bundle.name}_image"
    file = {"name": IMAGE_FILE, "data_type": "TYPE_STRING", "dims": [1]}
    shared = {
        "max_batch_size": model["max_batch_size"],
        "input": [file],
        "version_policy": model["version_policy"],
    }
    version = made / decoder / "1"
    version.mkdir(parents=True)
    _put_decoder(bundle, version)
    requirements = made / decoder / "requirements.txt"
    lines = ["numpy", *(f"{name}=={metadata.version(name)}" for name in _REQUIRED)]
    requirements.write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
    group = {"count": _DECODERS, "kind": "KIND_CPU"}
    write_config(
        made / decoder,
        {
            **shared,
            "name": decoder,
            "backend": "python",
            "output": [pixels],
            "instance_group": [group],
            "dynamic_batching": {},
        },
    )
    (made / ensemble / "1").mkdir(parents=True)
    # Git and most archives keep no empty folder, and the ensemble's version is one.
    (made / ensemble / "1" / ".keep").touch()
    (made / ensemble / LABELS).write_bytes(labels)
    steps = [
        {
            "model_name": decoder,
            "model_version": -1,
            "input_map": {IMAGE_FILE: IMAGE_FILE},
            "output_map": {pixels["name"]: pixels["name"]},
        },
        {
            "model_name": bundle.name,
            "model_version": -1,
            "input_map": {pixels["name"]: pixels["name"]},
            "output_map": {each["name"]: each["name"] for each in model["output"]},
        },
    ]
    write_config(
        made / ensemble,
        {
            **shared,
            "name": ensemble,
            "platform": "ensemble",
            "output": model["output"],
            "ensemble_scheduling": {"step": steps},
        },
    )
    return [
        f"{ensemble} takes image files; {decoder} decodes them with deploykit's own code, and the "
        f"server's Python needs what {decoder}/requirements.txt names"
    ]


def _put_decoder(bundle: Bundle, version: Path) -> None:
    """Write the Python model, the code that it uses, and an image with the pixels to expect."""
    templates = resources.files("deploykit.commands.package") / "templates"
    (version / "model.py").write_bytes((templates / "triton_preprocess.py").read_bytes())
    write_wheel(version)
    data = _check_image()
    (version / "check.jpg").write_bytes(data)
    preprocessing = bundle.manifest.preprocessing
    with decoded_rgb(Path("check.jpg"), data=data) as image:
        pixels = np.ascontiguousarray(preprocess(image, preprocessing))
    recorded = {
        "preprocessing": preprocessing,
        "check_sha256": hashlib.sha256(pixels.data).hexdigest(),
    }
    text = msgspec.json.format(msgspec.json.encode(recorded), indent=2)
    (version / "preprocessing.json").write_bytes(text + b"\n")


def _check_image() -> bytes:
    """A made JPEG: slopes and noise, on which decoders and resizers differ."""
    height, width = _CHECK_SIZE
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 80, (height, width))
    pixels = np.stack([rows + noise, columns + noise[::-1], 255 - rows - noise], axis=-1)
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()
