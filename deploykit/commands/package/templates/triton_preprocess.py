"""Triton's Python backend: image files to the pixels that the network takes.

deploykit's own code does it, from the wheel beside this file. See requirements.txt in the folder
above for what this server's Python has to have.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, HERE.glob("deploykit-*.whl"))

from deploykit.errors import DeploykitError  # noqa: E402
from deploykit.images.decode import decoded_rgb  # noqa: E402
from deploykit.images.preprocess import Pixels, preprocess  # noqa: E402
from deploykit.specs.preprocessing import Preprocessing  # noqa: E402
from deploykit.specs.value import decode_json  # noqa: E402


def pixels_of(data: bytes, name: str, preprocessing: Preprocessing) -> Pixels:
    """One file's bytes => (H, W, 3)."""
    with decoded_rgb(Path(name), data=data) as image:
        return preprocess(image, preprocessing)


class TritonPythonModel:
    """``image`` (N, 1), a file's bytes each => ``images`` (N, H, W, 3)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the preprocessing, and see that this Pillow gives the recorded pixels."""
        del args
        recorded = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
        self.preprocessing = decode_json(json.dumps(recorded["preprocessing"]), Preprocessing)
        data = (HERE / "check.jpg").read_bytes()
        pixels = pixels_of(data, "check.jpg", self.preprocessing)
        if hashlib.sha256(pixels.tobytes()).hexdigest() != recorded["check_sha256"]:
            raise pb_utils.TritonModelException(
                "check.jpg gives other pixels here than where the bundle was packaged: install "
                "the versions of requirements.txt"
            )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request; one with a file that is no image gets an error, the others go on."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """Answer one request."""
        files = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        try:
            pixels = [
                pixels_of(bytes(data), f"image {number}", self.preprocessing)
                for number, data in enumerate(files)
            ]
        except DeploykitError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.message))
        images = pb_utils.Tensor("images", np.stack(pixels))
        return pb_utils.InferenceResponse(output_tensors=[images])
