"""Real networks, end to end: ONNX Runtime on ``model.onnx`` gives the torch module's logits."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.models.registry import resolve_architecture
from deploykit.specs.preprocessing_options import PreprocessingOptions

K2 = {"k": 2, "growth_rate": 8, "block_config": (2, 2), "num_init_features": 16}
#: By default, ``verify/test_networks.py`` exports the others' kinds of layers, in small networks.
SMALL = [("densenet", K2, 64)]
LARGE = [
    ("resnet_cifar96", {}, None),
    ("mnasnet1_0", {}, 64),
    ("timm/efficientnet_b0", {}, 64),
    ("dpn92", {}, None),
    ("dpn98", {}, None),
    ("densenet", {"k": 2}, None),
    ("densenet121", {}, None),
    ("resnext50_32x4d", {}, None),
    ("efficientnet_b0", {}, None),
    ("timm/dpn68", {}, None),
]


@pytest.mark.parametrize(
    ("arch", "arguments", "size"),
    [
        *(pytest.param(*case, id=f"{case[0]}-small") for case in SMALL),
        *(pytest.param(*case, id=case[0], marks=pytest.mark.slow) for case in LARGE),
    ],
)
def test_export_of_real_networks_keeps_logits(arch, arguments, size, tmp_path, photo_folder):
    torch.manual_seed(0)
    module = resolve_architecture(arch, allow_user_code=True).build(4, arguments).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # as after training, or folding hides nothing
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    torch.save(module.state_dict(), tmp_path / "best_model.pth")
    request = ExportRequest(
        arch=arch,
        arch_args=arguments,
        checkpoint=tmp_path / "best_model.pth",
        preprocessing=PreprocessingOptions(input_size=(size, size) if size else None),
        images=photo_folder,
        artifacts=tmp_path / "artifacts",
    )
    bundle = export_bundle(request).bundle

    height, width = bundle.manifest.preprocessing.input_size
    images = np.random.default_rng(0).standard_normal((3, 3, height, width)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.tensor(images)).numpy()
    session = ort.InferenceSession(bundle.folder / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": images})
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert verify_bundle(bundle, VerifyRequest(self_test=True)).passed
