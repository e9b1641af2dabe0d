"""A bundle that is diagnosed by stage, and exports that differ from it."""

import pytest
from training_transforms import TRANSFORMS

from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.commands.diagnose.stages.run import diagnose_stages
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.proof.reference import ReferenceRequest
from deploykit.specs.preprocessing_options import PreprocessingOptions


@pytest.fixture(scope="session")
def transforms(tmp_path_factory):
    path = tmp_path_factory.mktemp("training_code") / "train.py"
    path.write_text(TRANSFORMS, encoding="utf-8")
    return path


@pytest.fixture
def diagnose(exported_bundle, network_file, photo_folder):
    """Diagnose the colours' bundle up to ONNX Runtime, its module for the reference."""

    def run(bundle=exported_bundle, progress=lambda event: None, plan=None, **fields):
        defaults = {
            "runtime": "onnxruntime-cpu",
            "images": photo_folder,
            "max_images": 15,
            "reference": ReferenceRequest(arch=f"{network_file}:Net"),
        }
        return diagnose_stages(bundle, DiagnosisRequest(**(defaults | fields)), progress, plan)

    return run


@pytest.fixture
def export(tmp_path, network_file, checkpoint, photo_folder):
    """Export the colours' network otherwise."""

    def run(**fields):
        defaults = {
            "arch": f"{network_file}:Net",
            "checkpoint": checkpoint,
            "classes": str(photo_folder),
            "preprocessing": PreprocessingOptions(input_size=(16, 16)),
            "images": photo_folder,
            "name": "otherwise",
            "artifacts": tmp_path / "artifacts",
        }
        return export_bundle(ExportRequest(**(defaults | fields))).bundle

    return run
