"""``verify`` over real networks: each decides as its module in FP32, and rehearsed in FP16."""

import numpy as np
import pytest
import torch
from fp16_networks import tune_fp16
from torch import nn

from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.commands.verify.text import verification_text
from deploykit.images.batches import read_batches
from deploykit.images.scan import scan_images
from deploykit.models.registry import resolve_architecture
from deploykit.runtime._base import normalised
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.preprocessing_options import PreprocessingOptions

CLASSES = ("blue", "green", "red")
K2 = {"k": 2, "growth_rate": 8, "block_config": (2, 2), "num_init_features": 16}
#: The architecture, its arguments and the side of its images.
SMALL = [
    ("timm/test_efficientnet", {}, 64),
]
LARGE = [
    ("timm/test_resnet", {}, 64),
    ("densenet", K2, 64),
    ("torchvision/mobilenet_v3_small", {}, 64),
    ("dpn92", {}, 224),
    ("dpn98", {}, 224),
    ("resnet_cifar96", {}, 96),
    ("densenet", {"k": 2}, 224),
    ("torchvision/resnet50", {}, 224),
    ("torchvision/densenet121", {}, 224),
    ("torchvision/resnext50_32x4d", {}, 224),
    ("torchvision/efficientnet_b0", {}, 224),
    ("timm/dpn92", {}, 224),
    ("timm/regnetx_002", {}, 224),
]


def taught(architecture, arguments, photos, side):
    """A network with random features, whose last layer tells the photos' colours apart.

    Its normalisation layers have seen the photos: without that, a deep random network answers
    all photos alike, and nothing about decisions could be compared.
    """
    torch.manual_seed(0)
    module = resolve_architecture(architecture, allow_user_code=True).build(len(CLASSES), arguments)
    preprocessing = Preprocessing(resize=(side, side))
    files = scan_images(photos, CLASSES).files
    batches = [
        torch.from_numpy(normalised(batch.images, preprocessing))
        for batch in read_batches(files, preprocessing, batch_size=15)
    ]
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches
            # Blocks that say little beside their shortcuts: deep random ones blow rounding up.
            nn.init.constant_(layer.weight, 0.3)
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    head = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    seen = []
    noise = torch.randn(batches[0].shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for batch in (*batches, noise):  # export asks about noise, too
            module.train()(batch)
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
        for batch in batches:
            module.eval()(batch)
        hook.remove()
        features = torch.cat(seen).double().numpy()
        wanted = 4.0 * np.eye(len(CLASSES))[[CLASSES.index(file.expected) for file in files]]
        # Ridge regression, in the photos' space: there are fewer of them than features.
        kernel = features @ features.T
        ridge = 0.1 * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
        weight = (features.T @ np.linalg.solve(kernel + ridge, wanted)).T
        head.weight.copy_(torch.from_numpy(weight).reshape(head.weight.shape))
        head.bias.zero_()
    return module


@pytest.mark.parametrize(
    ("architecture", "arguments", "side"),
    [
        *(pytest.param(*case, id=f"{case[0]}-small") for case in SMALL),
        *(
            pytest.param(*case, id=case[0], marks=[pytest.mark.slow, pytest.mark.timeout(1800)])
            for case in LARGE
        ),
    ],
)
def test_verify_passes_real_networks(architecture, arguments, side, tmp_path, photo_folder):
    torch.save(
        taught(architecture, arguments, photo_folder, side).state_dict(),
        tmp_path / "best_model.pth",
    )
    request = ExportRequest(
        arch=architecture,
        arch_args=arguments,
        checkpoint=tmp_path / "best_model.pth",
        classes=str(photo_folder),
        preprocessing=PreprocessingOptions(
            preset="tutorial", resize=(side, side), input_size=(side, side)
        ),
        artifacts=tmp_path / "artifacts",
    )
    bundle = tune_fp16(export_bundle(request).bundle).bundle
    result = verify_bundle(bundle, VerifyRequest(images=photo_folder))
    assert result.passed, verification_text(result)
    assert result.reference.kind == "module"
    compared = {(verdict.candidate.graph, verdict.candidate.runtime) for verdict in result.verdicts}
    assert compared >= {
        ("model.onnx", "onnxruntime-cpu"),
        ("deploy/fp32.onnx", "onnxruntime-cpu"),
        ("deploy/fp16.onnx", "rehearsal"),
    }
