"""A real Triton serves what ``package --format triton`` wrote."""

import json
import shutil
from importlib import resources

import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from PIL import Image
from triton_server import make_environment, make_twin, serving

from deploykit.bundle.golden import read_golden
from deploykit.commands.package.request import PackageRequest
from deploykit.commands.package.run import package_bundle
from deploykit.commands.package.triton_config import check_repository
from deploykit.commands.predict.model import load
from deploykit.errors import InputError

# Of the first test the time to install an environment counts, too.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CLIENT = """
import json, sys
from pathlib import Path
import numpy as np
import tritonclient.grpc, tritonclient.http

http, grpc, folder = sys.argv[1:]
folder = Path(folder)
images = np.load(folder / "images.npy")
files = [np.array([[path.read_bytes()]], object) for path in sorted(folder.glob("*.jpg"))]
found, told = {}, {}
for name, module, place in (("http", tritonclient.http, http), ("grpc", tritonclient.grpc, grpc)):
    client = module.InferenceServerClient(place)

    def infer(model, input_name, data, kind, classes=0):
        given = module.InferInput(input_name, data.shape, kind)
        given.set_data_from_numpy(data)
        names = ("logits", "probabilities")
        wanted = [module.InferRequestedOutput(each, class_count=classes) for each in names]
        answer = client.infer(model, [given], outputs=wanted)
        return [answer.as_numpy(each) for each in names]

    logits, probabilities = infer("colours", "images", images, "UINT8")
    found[f"{name} logits"], found[f"{name} probabilities"] = logits, probabilities
    together = np.concatenate(files)
    found[f"{name} files"] = infer("colours_image", "image", together, "BYTES")[0]
    found[f"{name} single"] = np.concatenate(
        [infer("colours_image", "image", each, "BYTES")[0] for each in files]
    )
    for model, key, data, kind in (
        ("colours", "images", images, "UINT8"), ("colours_image", "image", together, "BYTES")
    ):
        top = infer(model, key, data, kind, 1)[1]
        told[f"{name} {model}"] = [each[0].decode() for each in top]
    try:
        infer("colours_image", "image", np.array([[b"GIF8 no image"]], object), "BYTES")
        told[f"{name} broken"] = "answered"
    except tritonclient.utils.InferenceServerException as error:
        told[f"{name} broken"] = error.message()
np.savez(folder / "found.npz", **found)
(folder / "told.json").write_text(json.dumps(told))
"""
DESCRIPTOR = """
import sys
from pathlib import Path
from tritonclient.grpc import model_config_pb2

Path(sys.argv[3]).write_bytes(model_config_pb2.DESCRIPTOR.serialized_pb)
"""
#: What protobuf takes and Triton does not load, by what it is.
BROKEN = {
    "preferred": (
        "max_queue_delay_microseconds: 2000",
        "max_queue_delay_microseconds: 2000 preferred_batch_size: 33",
    ),
    "labels": ('label_filename: "labels.txt"', 'label_filename: "other.txt"'),
    "warmup": ("dims: 3\n      input_data_file", "dims: 4\n      input_data_file"),
    "version": ("", ""),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory, exported_bundle):
    """The repository with the network's backend replaced, and broken models beside it."""
    folder = tmp_path_factory.mktemp("triton") / "repository"
    request = PackageRequest(format="triton", output=folder, preprocess=True)
    package_bundle(exported_bundle, request)
    make_twin(folder, "colours")
    for name, (old, new) in BROKEN.items():
        shutil.copytree(folder / "colours", folder / name)
        config = folder / name / "config.pbtxt"
        text = config.read_text().replace('"colours"', f'"{name}"')
        assert old in text
        config.write_text(text.replace(old, new))
    shutil.rmtree(folder / "version" / "1")
    return folder


@pytest.fixture(scope="module")
def triton(tmp_path_factory, repository):
    """That repository, served."""
    environment = tmp_path_factory.mktemp("environment") / "triton"
    make_environment(environment, repository / "colours_preprocess" / "requirements.txt")
    with serving(environment, repository, environment / "log.txt") as server:
        yield server


@pytest.fixture(scope="module")
def answers(tmp_path_factory, triton, exported_bundle, photo_folder):
    """What tritonclient was answered, over HTTP and gRPC; and the files that it sent."""
    folder = tmp_path_factory.mktemp("client")
    np.save(folder / "images.npy", read_golden(exported_bundle).images)
    for number, path in enumerate(sorted(photo_folder.rglob("*.png"))[::6]):
        Image.open(path).save(folder / f"{number}.jpg", quality=90)
    triton.run_client(CLIENT, folder)
    found = np.load(folder / "found.npz")
    return found, json.loads((folder / "told.json").read_text()), sorted(folder.glob("*.jpg"))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_triton_gives_the_very_logits(protocol, answers, exported_bundle):
    found, told, files = answers
    golden = read_golden(exported_bundle)
    labels = exported_bundle.manifest.labels
    with load(exported_bundle, runtime="onnxruntime-cpu") as model:
        expected = model.logits(golden.images)
        rows = [model(path) for path in files]
        of_files = np.concatenate([model.logits(pixels[None]) for pixels in _pixels(model, files)])
    assert np.array_equal(found[f"{protocol} logits"], expected)
    assert np.array_equal(found[f"{protocol} files"], of_files)
    assert np.array_equal(found[f"{protocol} single"], of_files)
    probabilities = labels.head.probabilities(expected)
    assert np.allclose(found[f"{protocol} probabilities"], probabilities, rtol=0, atol=1e-6)
    decided = [labels.title_of(each) for each in labels.head.decide(golden.logits)]
    assert [each.split(":")[2] for each in told[f"{protocol} colours"]] == decided
    shown = [each.split(":") for each in told[f"{protocol} colours_image"]]
    assert [each[2] for each in shown] == [row.label for row in rows]
    assert [float(each[0]) for each in shown] == pytest.approx(
        [row.probability for row in rows], abs=1e-5
    )


def _pixels(model, files):
    from deploykit.images.decode import decode_rgb
    from deploykit.images.preprocess import preprocess

    preprocessing = model.bundle.manifest.preprocessing
    return [preprocess(decode_rgb(path), preprocessing) for path in files]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_triton_tells_of_a_file_that_is_no_image(protocol, answers):
    assert "image 0: " in answers[1][f"{protocol} broken"]


def test_triton_client_has_the_descriptor_that_configurations_are_checked_by(triton, tmp_path):
    triton.run_client(DESCRIPTOR, tmp_path / "descriptor")
    ours = resources.files("deploykit.commands.package") / "templates/triton_model_config.pb"
    assert fields_of(ours.read_bytes()) <= fields_of((tmp_path / "descriptor").read_bytes())


def fields_of(descriptor):
    """Messages, fields, numbers and types: a later tritonclient may have more."""
    proto = descriptor_pb2.FileDescriptorProto.FromString(descriptor)
    pending, found = [("", each) for each in proto.message_type], set()
    while pending:
        within, message = pending.pop()
        name = f"{within}.{message.name}"
        found |= {(name, f.name, f.number, f.type, f.type_name) for f in message.field}
        pending += [(name, each) for each in message.nested_type]
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_triton_and_the_rules_refuse_the_same(name, triton, repository, tmp_path):
    assert triton.is_ready("colours")
    assert not triton.is_ready(name)
    shutil.copytree(repository / name, tmp_path / "only" / name)
    with pytest.raises(InputError, match="Triton would not load"):
        check_repository(tmp_path / "only")
    shutil.copytree(repository / "colours", tmp_path / "right" / "colours")
    check_repository(tmp_path / "right")
