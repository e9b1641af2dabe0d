"""The preprocessing that a library documents for its own networks."""

from __future__ import annotations

import math

from deploykit.errors import UsageError
from deploykit.models.registry import Architecture
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.deps import need


def timm_preprocessing(architecture: Architecture) -> Preprocessing:
    """What timm's evaluation transform does to a photo for one of its networks.

    Source: ``timm.data.transforms_factory.transforms_imagenet_eval``, which resizes by the crop
    fraction, rounded down, and then crops the centre.

    Raises:
        UsageError: The architecture is not timm's, or its transform is one that we do not have.
    """
    if architecture.origin != "timm":
        raise UsageError(
            f"{architecture.name} is not a timm network, so timm has no preprocessing for it.",
            hint="Name it timm/NAME, or use --preset tutorial or torchvision.",
        )
    model = architecture.name.removeprefix("timm/")
    settings = need("timm.models").get_pretrained_cfg(model).to_dict()
    config = need("timm.data").resolve_data_config(pretrained_cfg=settings)
    channels, height, width = config["input_size"]
    mode, filter_name = config["crop_mode"], config["interpolation"]
    stretched = mode == "squash"
    if (
        channels != 3
        or filter_name not in ("nearest", "bilinear", "bicubic")
        or not (stretched or (mode == "center" and height == width))
    ):
        raise UsageError(
            f"timm preprocesses for {model} in a way that deploykit does not have: "
            f"{channels}x{height}x{width}, crop mode {mode}, interpolation {filter_name}.",
            hint="Say what training did with --resize, --crop-size and --interpolation.",
        )
    resized = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    return Preprocessing(
        resize=(resized[0], resized[1]) if stretched else resized[0],
        crop_size=(height, width),
        interpolation=filter_name,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        source=f"timm {model}",
    )
