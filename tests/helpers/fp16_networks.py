"""Networks that tell colours apart, with something that FP16 or INT8 cannot hold in the middle."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from deploykit.bundle.folder import Bundle
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.commands.quantize.request import QuantizeRequest
from deploykit.commands.quantize.run import quantize_bundle
from deploykit.models.registry import resolve_architecture
from deploykit.specs.preprocessing_options import PreprocessingOptions
from deploykit.system.progress import silent

NETWORKS = '''
import torch
from torch import nn


class Colours(nn.Module):
    """The logits are the colours' mean brightness, times 4."""

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.middle = self.make_middle()
        self.head = nn.Linear(3, num_classes)

    def make_middle(self):
        return nn.Identity()

    def forward(self, x):
        return self.head(torch.relu(self.middle(self.stem(x))).mean((2, 3)))


class Gains(nn.Sequential):
    """One 1x1 convolution after the other, each a mere factor."""

    def __init__(self, *factors):
        super().__init__(*(nn.Conv2d(3, 3, 1) for _ in factors))
        for layer, factor in zip(self, factors):
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                layer.weight.copy_(factor * torch.eye(3).reshape(3, 3, 1, 1))


class Overflow(Colours):
    """A gain of 300 followed by 1/300, on values up to a few hundred."""

    def make_middle(self):
        return Gains(100.0, 300.0, 1 / 300, 1 / 100)


class Underflow(Colours):
    """Down to 1e-8 and up again, each weight harmless."""

    def make_middle(self):
        return Gains(1e-4, 1e-4, 1e4, 1e4)


class Shift(nn.Module):
    def __init__(self, offset):
        super().__init__()
        self.register_buffer("offset", torch.full((1, 3, 1, 1), offset))

    def forward(self, x):
        return (x + self.offset) - self.offset


class SensitiveSum(Colours):
    """Adds 20000 and takes it away again: FP16 counts in sixteens there."""

    def make_middle(self):
        return nn.Sequential(Gains(1.0), Shift(20000.0), Gains(1.0))


class Outliers(Colours):
    """Channels a thousand times as loud, to which the next layer is deaf."""

    def make_middle(self):
        loud, deaf = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1)
        same = torch.eye(3).reshape(3, 3, 1, 1)
        with torch.no_grad():
            loud.weight.copy_(torch.cat([same, 1000 * same]))
            deaf.weight.copy_(torch.cat([same, 0 * same], 1))
        return nn.Sequential(loud, deaf)


class Pooled(Outliers):
    """A MaxPool, which carries integers on and computes nothing."""

    def make_middle(self):
        return nn.Sequential(nn.MaxPool2d(2), super().make_middle())


class Shortcut(Colours):
    """An Add, which OpenVINO can compute without integers."""

    def make_middle(self):
        return Residual()


class Residual(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))

    def forward(self, x):
        return x + super().forward(x)


class Loud(Colours):
    """Not one tensor fits."""

    def forward(self, x):
        return super().forward(1e6 * x)
'''
CLASSES = ("blue", "green", "red")
#: The dominant channel where ``Overflow`` stays within FP16, and where it does not.
DIM, BRIGHT = 80, 200


def make_photos(folder: Path, brightness: int, count: int = 10) -> Path:
    """Folders of noisy photos, named after their dominant colour."""
    rng = np.random.default_rng(0)
    for channel, name in zip((2, 1, 0), CLASSES, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            write_photo(folder / name / f"{i:02}.png", channel, brightness, rng)
    return folder


def write_photo(path: Path, channel: int, brightness: int, rng: np.random.Generator) -> None:
    """Write a noisy photo with one dominant channel."""
    pixels = rng.integers(0, 30, (16, 16, 3))
    pixels[..., channel] += brightness
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def export_network(name: str, photos: Path, folder: Path) -> Bundle:
    """A bundle of one of the networks, whose colours are right."""
    code = folder / "networks.py"
    code.write_text(NETWORKS, encoding="utf-8")
    module = resolve_architecture(f"{code}:{name}", allow_user_code=True).build(len(CLASSES))
    state = module.state_dict()
    state["stem.weight"] = torch.eye(3)[[2, 1, 0]].reshape(3, 3, 1, 1)  # RGB => blue, green, red
    state["stem.bias"] = torch.full((3,), 1.0)
    state["head.weight"] = 4 * torch.eye(3)
    state["head.bias"] = torch.zeros(3)
    torch.save(state, folder / "best_model.pth")
    request = ExportRequest(
        arch=f"{code}:{name}",
        checkpoint=folder / "best_model.pth",
        classes=str(photos),
        images=photos,
        preprocessing=PreprocessingOptions(input_size=(16, 16)),
        name=name.lower(),
        artifacts=folder / "artifacts",
    )
    return export_bundle(request).bundle


def tune_fp16(bundle, images=None, progress=silent, **options):
    """Make the FP16 graph; gives it with the bundle as it is then."""
    request = QuantizeRequest("fp16", images, **options)
    result = quantize_bundle(bundle, request, progress)
    (graph,) = result.graphs
    found = {name: getattr(graph, name) for name in ("kept", "verdict", "proof", "searched")}
    return SimpleNamespace(
        bundle=result.bundle, trials=graph.trials, minimal=graph.minimal, **found
    )
