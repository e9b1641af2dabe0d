"""Where a checkpoint's weights and a network's differ, explained in a few lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

#: Counts batches in training and changes nothing in eval; files from before torch 0.4.1 lack it.
OPTIONAL = "num_batches_tracked"
EXAMPLES = 2
GROUPS = 3

#: A name that only one family's weights have, and what the family is called with ``--arch``.
FAMILIES = (
    ("conv2.0.shortcut.0.weight", "the DPN tutorial's networks: dpn92 or dpn98"),
    ("block5.1.bn2.weight", "the ResNet tutorial's network: resnet_cifar96"),
    ("layer1.0.conv1.weight", "ResNets: resnet18, resnet50, resnext50_32x4d or another"),
    ("features.denseblock1.denselayer1.conv1.weight", "DenseNets: densenet121 or another"),
    ("layers.8.0.layers.0.weight", "torchvision's MNASNets: mnasnet1_0 or another"),
    ("features.1.0.block.0.0.weight", "torchvision's EfficientNets: efficientnet_b0 or another"),
    ("features.1.conv.0.0.weight", "torchvision's mobilenet_v2"),
    ("features.1.block.0.0.weight", "torchvision's MobileNetV3: mobilenet_v3_large or _small"),
    ("Mixed_5b.branch1x1.conv.weight", "torchvision's inception_v3"),
    ("inception3a.branch1.conv.weight", "torchvision's googlenet"),
    ("encoder.layers.encoder_layer_0.ln_1.weight", "torchvision's ViTs: vit_b_16 or another"),
    ("features.1.0.attn.qkv.weight", "torchvision's Swins: swin_t or another"),
    ("features.1.0.layer_scale", "torchvision's ConvNeXts: convnext_tiny or another"),
    ("blocks.0.attn.qkv.weight", "timm's ViTs: timm/vit_base_patch16_224 or another"),
    ("stages.0.blocks.0.conv_dw.weight", "timm's ConvNeXts: timm/convnext_tiny or another"),
    ("conv_stem.weight", "timm's mobile networks: timm/efficientnet_b0 or another"),
)


@dataclass(frozen=True)
class Mismatch:
    """The differences between a checkpoint's entries and a network's.

    Attributes:
        missing: In the network, not in the file.
        unexpected: In the file, not in the network.
        misshapen: In both, with the file's shape and the network's.
        shared: How many entries agree.
        family: What the file's names look like, when that is known.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    shared: int
    family: str | None

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    @property
    def message(self) -> str:
        """What differs: counts, and a few names of each kind by top-level module."""
        kinds = [
            (len(self.missing), "missing from the file", _grouped(self.missing)),
            (len(self.unexpected), "not in the network", _grouped(self.unexpected)),
            (len(self.misshapen), "of another shape", self._shapes()),
        ]
        lines = [f"  {count} {kind}: {names}" for count, kind, names in kinds if count]
        return "\n".join([f"{self.shared} entries fit; the others do not:", *lines])

    @property
    def hint(self) -> str:
        """The likely cause, and what to do."""
        names = [*self.missing, *self.unexpected, *(name for name, _, _ in self.misshapen)]
        changed = {name.partition(".")[0] for name in names}
        if self.shared and len(changed) == 1:
            return (
                f"Only '{changed.pop()}' differs: if training changed that part, write a function "
                "that makes the network so, and name it: --arch path/to/file.py:function."
            )
        if self.family and self.shared < len(names):
            return f"The file's names are those of {self.family}. Name the one that was trained."
        return "Name the architecture that was trained, with the --arch-arg values it had."

    def _shapes(self) -> str:
        shown = [
            f"{name} is {_shape(file)} in the file, {_shape(network)} in the network"
            for name, file, network in self.misshapen[:EXAMPLES]
        ]
        return "; ".join([*shown, *(["..."] if len(self.misshapen) > EXAMPLES else [])])


def compare(found: Shapes, expected: Shapes) -> Mismatch:
    """Compare a checkpoint's shapes with a network's.

    Args:
        found: The checkpoint's, under the network's names.
        expected: The network's.
    """
    both = [name for name in expected if name in found]
    misshapen = [(n, found[n], expected[n]) for n in both if found[n] != expected[n]]
    return Mismatch(
        missing=tuple(
            name for name in expected if name not in found and not name.endswith(OPTIONAL)
        ),
        unexpected=tuple(name for name in found if name not in expected),
        misshapen=tuple(misshapen),
        shared=len(both) - len(misshapen),
        family=family_of(found),
    )


def family_of(names: Collection[str]) -> str | None:
    """What the family of networks is called whose weights have such names; None where unknown."""
    return next((family for marker, family in FAMILIES if marker in names), None)


def _grouped(names: Collection[str]) -> str:
    """``fc (fc.weight, fc.bias), layer4 (57 as layer4.0.conv1.weight), and 3 more``."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name.partition(".")[0]].append(name)
    shown = []
    for top, members in list(groups.items())[:GROUPS]:
        few = len(members) <= EXAMPLES
        shown.append(f"{top} ({', '.join(members) if few else f'{len(members)} as {members[0]}'})")
    rest = len(groups) - GROUPS
    return ", ".join(shown) + (f", and {rest} more" if rest > 0 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
