"""``--format triton``: what is in the repository, and what is refused."""

import json
import shutil

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from bundle_files import edited

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.bundle.golden import read_golden
from deploykit.bundle.manifest import record_file
from deploykit.commands.package import triton
from deploykit.commands.package.triton_config import _read
from deploykit.engine.passport import BuiltOn, passport_path, read_passport, write_passport
from deploykit.errors import BundleError, DeploykitError, InputError, ParityError, UsageError
from deploykit.graph.probabilities import with_probabilities
from deploykit.specs.engine import Profile
from deploykit.specs.heads import head_of
from deploykit.specs.model import Labels


def config_of(result, model="colours"):
    return _read(result.output / model / "config.pbtxt")


def with_tensorrt_engine(bundle, capability=(8, 9), version="10.13.3.9", **profile):
    """The bundle with its RTX engine replaced by bytes that pass for one of TensorRT's."""
    old = bundle.manifest.engines[0]
    passport = read_passport(passport_path(bundle.folder / old))
    plan = b"ftrt" + bytes(60) + bytes(str(capability), "ascii")
    path = bundle.folder / "engines" / "made"
    path.write_bytes(plan)
    record = record_file(path)
    passport = msgspec.structs.replace(
        passport,
        flavour="tensorrt",
        version=version,
        targets=("current",),
        gpu=BuiltOn(name="NVIDIA A10", compute_capability=capability),
        profile=Profile(**{"min_batch": 1, "opt_batch": 4, "max_batch": 16, **profile}),
        engine_sha256=record.sha256,
        engine_bytes=record.bytes,
    )
    file = f"engines/{passport.engine}"
    path.rename(bundle.folder / file)
    write_passport(passport_path(bundle.folder / file), passport)
    files = dict(bundle.manifest.files)
    for name in (file, passport_path(bundle.folder / file).relative_to(bundle.folder).as_posix()):
        files[name] = record_file(bundle.folder / name)
    return edited(bundle, files=files, engines=(*bundle.manifest.engines, file)), passport.engine


def test_triton_repository(package, exported_bundle):
    result = package(exported_bundle, "triton")
    names = {"logits": 3, "probabilities": 3}
    assert {*result.files} == {
        "deploykit.json",
        "colours/config.pbtxt",
        "colours/labels.txt",
        "colours/warmup/golden-images",
        "colours/1/model.onnx",
    }
    config = config_of(result)
    assert (config.name, config.backend, config.max_batch_size) == ("colours", "onnxruntime", 32)
    assert [(each.name, [*each.dims]) for each in config.input] == [("images", [16, 16, 3])]
    assert {each.name: each.dims[0] for each in config.output} == names
    assert {each.label_filename for each in config.output} == {"labels.txt"}
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.version_policy.latest.num_versions == 1
    assert [each.batch_size for each in config.model_warmup] == [1, 8]
    assert (result.output / "colours/labels.txt").read_text() == "blue\ngreen\nred\n"
    golden = read_golden(exported_bundle)
    warmup = np.fromfile(result.output / "colours/warmup/golden-images", np.uint8)
    assert np.array_equal(warmup.reshape(golden.images.shape), golden.images)
    session = onnxruntime.InferenceSession(result.output / "colours/1/model.onnx")
    logits, probabilities = session.run([*names], {"images": golden.images})
    original = onnxruntime.InferenceSession(exported_bundle.folder / "deploy/fp32.onnx")
    assert np.array_equal(logits, original.run(None, {"images": golden.images})[0])
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert any("is proven on onnxruntime-cpu, CPU" in note for note in result.written.notes)
    assert json.loads((result.output / "deploykit.json").read_text())["bundle"] == "colours"


def test_triton_is_the_same_again(package, exported_bundle):
    first = package(exported_bundle, "triton", preprocess=True)
    second = package(exported_bundle, "triton", "again", preprocess=True)
    assert first.files == second.files
    for name in first.files:
        assert (first.output / name).read_bytes() == (second.output / name).read_bytes()


def test_triton_ensemble(package, exported_bundle):
    result = package(exported_bundle, "triton", preprocess=True, max_batch=4)
    ensemble, decoder = config_of(result, "colours_image"), config_of(result, "colours_preprocess")
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["colours_preprocess", "colours"]
    assert {each.max_batch_size for each in (ensemble, decoder)} == {4}
    assert config_of(result).model_warmup[1].batch_size == 4
    lines = (result.output / "colours_preprocess/requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in lines] == ["numpy", "msgspec", "pillow"]


def test_triton_binary_head_labels_probabilities_alone(exported_bundle):
    manifest = exported_bundle.manifest
    changed = msgspec.structs.replace(
        manifest,
        labels=Labels(names=("no", "yes"), source="made", head=head_of("binary", [0.5])),
        architecture=msgspec.structs.replace(manifest.architecture, classes=1),
    )
    served = triton._Served((), {"backend": "onnxruntime"}, 8, None, True, ())
    config = triton._config(Bundle(exported_bundle.folder, changed), served)
    assert config["output"] == [
        {"name": "logits", "data_type": "TYPE_FP32", "dims": [1]},
        {
            "name": "probabilities",
            "data_type": "TYPE_FP32",
            "dims": [2],
            "label_filename": "labels.txt",
        },
    ]


def test_triton_changed_logits_are_refused(package, exported_bundle, monkeypatch):
    def other(model, labels):
        changed = with_probabilities(model, labels)
        weight = next(v for v in changed.graph.initializers.values() if "head.bias" in v.name)
        numbers = weight.const_value.numpy() + np.float32(1e-3)
        weight.const_value = ir.tensor(numbers)
        return changed

    monkeypatch.setattr("deploykit.graph.probabilities.with_probabilities", other)
    with pytest.raises(ParityError, match="gives other logits"):
        package(exported_bundle, "triton")


def test_triton_rtx_engine_is_refused(package, engine_bundle, tmp_path):
    name = engine_bundle.manifest.engines[0]
    with pytest.raises(InputError, match="TensorRT for RTX, which Triton's TensorRT backend does"):
        package(engine_bundle, "triton", engines=(name,))
    assert not (tmp_path / "packages").exists()


def test_triton_engine_of_another_kind_than_its_passport_says(package, engine_bundle):
    bundle, name = with_tensorrt_engine(engine_bundle)
    path = bundle.folder / "engines" / name
    path.write_bytes(path.read_bytes().replace(b"ftrt", b"vtrt"))
    with pytest.raises(BundleError, match="is not the file"):
        package(bundle, "triton", engines=(name,))


def test_triton_engines(package, engine_bundle):
    bundle, first = with_tensorrt_engine(engine_bundle)
    result = package(bundle, "triton", "one", engines=(first,))
    config = config_of(result)
    assert (config.backend, config.max_batch_size) == ("tensorrt", 16)
    assert dict(config.cc_model_filenames) == {"8.9": "model.plan"}
    assert [*config.dynamic_batching.preferred_batch_size] == [4]
    assert [each.name for each in config.output] == ["logits"]
    assert any("TensorRT 10.13.3.9" in note for note in result.written.notes)
    assert any("softmax" in note for note in result.written.notes)
    bundle, second = with_tensorrt_engine(bundle, (8, 6), max_batch=8)
    result = package(bundle, "triton", "two", engines=(first, second), max_batch=2)
    config = config_of(result)
    assert dict(config.cc_model_filenames) == {"8.9": "model-8.9.plan", "8.6": "model-8.6.plan"}
    assert (config.max_batch_size, config.dynamic_batching.preferred_batch_size[0]) == (2, 2)
    plan = (result.output / "colours/1/model-8.6.plan").read_bytes()
    assert plan == (bundle.folder / "engines" / second).read_bytes()


@pytest.mark.parametrize(
    ("more", "options", "error", "message"),
    [
        ({"capability": (8, 9), "version": "10.12.0.1"}, {}, UsageError, "Two of the engines"),
        (
            {"capability": (8, 6), "version": "10.12.0.1"},
            {},
            InputError,
            "a server has one version",
        ),
        ({"capability": (8, 6), "min_batch": 2}, {}, InputError, "at least 2 images"),
        ({"capability": (8, 6)}, {"max_batch": 17}, UsageError, "above the 16"),
    ],
)
def test_triton_engines_that_do_not_go_together(
    more, options, error, message, package, engine_bundle
):
    bundle, first = with_tensorrt_engine(engine_bundle)
    bundle, second = with_tensorrt_engine(bundle, **more)
    with pytest.raises(error, match=message):
        package(bundle, "triton", engines=(first, second), **options)


@pytest.mark.parametrize("name", ["my birds", "_birds", "b\u00fcrds", "a$(b)"])
def test_triton_bundle_with_a_name_that_is_none(name, package, exported_bundle, tmp_path):
    shutil.copytree(exported_bundle.folder, tmp_path / name)
    with pytest.raises(UsageError, match="cannot name a model"):
        package(open_bundle(tmp_path / name), "triton")


def test_triton_failed_graph_is_refused(package, bundle):
    (verdict, *_) = [v for v in bundle.manifest.verdicts if v.graph == "deploy/fp32.onnx"]
    measurement = msgspec.structs.replace(verdict.measurement, non_finite=1)
    failed = msgspec.structs.replace(verdict, reasons=("made",), measurement=measurement)
    changed = edited(bundle, verdicts=(failed,))
    with pytest.raises(ParityError, match="has failed its comparison"):
        package(changed, "triton")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "has no int8 graph"),
        ({"engines": ("none.engine",)}, "has no engine"),
    ],
)
def test_triton_what_the_bundle_does_not_have(options, message, package, exported_bundle):
    with pytest.raises(DeploykitError, match=message):
        package(exported_bundle, "triton", **options)


def test_triton_changed_graph_is_refused(package, bundle: Bundle, tmp_path):
    path = bundle.folder / "deploy" / "fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        package(bundle, "triton")
    assert not (tmp_path / "packages").exists()
