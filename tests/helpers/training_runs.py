"""What the tests of training share: tiny photos, tiny networks, and looks at what a run left."""

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from deploykit.commands.train.state import STATE, Epoch
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.progress import Note, Step

NETWORKS = '''
import time

import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, num_classes, width=6, stride=2):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=stride), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2)
        )
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.squeeze(self.features(x)).flatten(1))

class Spoiling(Tiny):
    """Says the opposite of what it has learnt from the ninth batch on."""

    def forward(self, x):
        seen = self.features[1].num_batches_tracked
        return super().forward(x) if self.training or seen <= 8 else -super().forward(x)

class Sigmoid(Tiny):
    def forward(self, x):
        return super().forward(x).sigmoid().squeeze(1)

class Softmax(Tiny):
    def forward(self, x):
        return super().forward(x).softmax(1)

class Exploding(Tiny):
    def forward(self, x):
        return super().forward(x) * float("inf")

class Slow(Tiny):
    def forward(self, x):
        time.sleep(0.2)
        return super().forward(x)

class Headless(Tiny):
    def forward(self, x):
        return self.features(x)

class Paired(Tiny):
    def forward(self, x):
        return super().forward(x), x

class Failing(Tiny):
    def forward(self, x):
        return x.reshape(5, 7)

class Weightless(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
'''

SMALL = Preprocessing(resize=(8, 8))
COLOURS = {"blue": (40, 60, 200), "red": (200, 60, 40)}


def make_photos(folder: Path, count: int = 10) -> Path:
    """A labelled folder of small noisy photos, whose colours tell the class."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.array(colour) + random.integers(-40, 41, (10, 12, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def odd_photos(folder: Path, count: int) -> Path:
    """A labelled folder of blurred noise in many sizes, some turned by EXIF or with palettes."""
    random = np.random.default_rng(0)
    for name in COLOURS:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            photo = noise.resize((31 + i, 24))
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6
            if i % 3 == 0:
                photo.save(folder / name / f"{i}.jpg", quality=60, exif=exif)
            else:
                (photo.quantize(5) if i % 3 == 1 else photo).save(folder / name / f"{i}.png")
    return folder


def composed_photos(folder: Path, count: int = 24) -> Path:
    """Photos of two halves, each in a class's colour or black; ``labels.csv`` beside them."""
    random = np.random.default_rng(1)
    names = ("red", "green", "blue")
    folder.mkdir()
    rows = ["path," + ",".join(names)]
    for i in range(count):
        halves = random.integers(0, 4, 2)  # 3 is of no class
        pixels = random.integers(0, 60, (10, 12, 3))
        for half, colour in enumerate(halves):
            pixels[:, 6 * half : 6 * half + 6, colour : colour + 1] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
        rows.append(f"{i:02}.png," + ",".join(str(int(c in halves)) for c in range(3)))
    (folder.parent / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def epoch(number: int = 1, **values: float) -> Epoch:
    defaults = dict.fromkeys(("train_accuracy", "train_loss", "test_accuracy", "test_loss"), 0.5)
    return Epoch(number=number, **(defaults | {"learning_rate": 1e-4, "seconds": 1.0} | values))


def weights(run: Path, file: str = "best_model.pth") -> dict[str, torch.Tensor]:
    content = torch.load(run / file, weights_only=True)
    return content["model"] if file == STATE else content


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def notes(events: list[Note | Step]) -> list[str]:
    return [event.message for event in events if isinstance(event, Note)]


def interrupt_at_epoch(event: Note | Step, number: int) -> None:
    if isinstance(event, Step) and event.stage.startswith(f"epoch {number}/"):
        raise KeyboardInterrupt
