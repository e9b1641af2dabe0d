"""A bundle's engines: found, checked before they are opened, tested at their first run."""

import hashlib
from pathlib import Path

import msgspec
import pytest
from bundle_files import acknowledged, edited, kept

from deploykit.bundle.folder import GOLDEN, open_bundle
from deploykit.commands.build.run import BuildRequest, build_engine
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.engine.passport import read_passport, write_passport
from deploykit.errors import BundleError, DependencyError, DeviceError, InputError
from deploykit.inference.engines import engines_of, named_engine, open_bundle_engine
from deploykit.proof.self_test import self_test
from deploykit.specs.engine import Profile
from deploykit.system.progress import silent

RTX_4070 = "NVIDIA GeForce RTX 4070"


@pytest.fixture
def several(engine_bundle, no_gpu):
    """The bundle with engines for any GPU, RTX 40, in FP32, and, the newest, for RTX 50."""
    bundle = build_engine(engine_bundle, BuildRequest(targets=("sm89",))).bundle
    bundle = build_engine(bundle, BuildRequest(precision="fp32")).bundle
    return build_engine(bundle, BuildRequest(targets=("sm120",))).bundle


def changed_passport(bundle, **fields):
    """The bundle whose engine's passport, and so its name, is another, as the manifest knows."""
    (old,) = bundle.manifest.engines
    folder, files = bundle.folder, dict(bundle.manifest.files)
    passport = msgspec.structs.replace(read_passport(folder / f"{old}.json"), **fields)
    new = f"engines/{passport.engine}"
    files[new] = files.pop(old)
    (folder / old).rename(folder / new)
    (folder / f"{old}.json").unlink()
    write_passport(folder / f"{new}.json", passport)
    del files[f"{old}.json"]
    return acknowledged(edited(bundle, engines=(new,), files=files), f"{new}.json")


def refusal(bundle):
    """Why the bundle's first engine does not open."""
    with pytest.raises((DeviceError, InputError)) as caught:
        open_bundle_engine(bundle, engines_of(bundle)[0])
    return caught.value


def test_engines_of_newest_first(several):
    names = [engine.passport.engine for engine in engines_of(several)]
    assert [name.split("-")[2:4] for name in names] == [
        ["sm120", "fp16"],
        ["portable", "fp32"],
        ["sm89", "fp16"],
        ["portable", "fp16"],
    ]


def test_named_engine_by_file_or_name(engine_bundle):
    (engine,) = engines_of(engine_bundle)
    assert named_engine(engine_bundle, engine.file) == engine
    assert named_engine(engine_bundle, Path(engine.file).name) == engine
    with pytest.raises(
        BundleError, match=r"has no engine x\.engine; it has tensorrt_rtx-"
    ) as caught:
        named_engine(engine_bundle, "x.engine")
    assert caught.value.hint == "Name one of these."


def test_named_engine_of_a_bundle_without_engines(bundle):
    assert engines_of(bundle) == []
    with pytest.raises(BundleError, match="it has none"):
        named_engine(bundle, "x.engine")


@pytest.mark.parametrize("damage", ["changed", "gone"])
@pytest.mark.parametrize("suffix", ["", ".json"], ids=["engine", "passport"])
def test_engine_damaged_or_missing_is_refused(engine_bundle, engines, suffix, damage):
    path = engine_bundle.folder / f"{engine_bundle.manifest.engines[0]}{suffix}"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    error = refusal(engine_bundle)
    assert isinstance(error, BundleError)
    assert path.name in error.message
    assert error.hint
    assert engines.sessions == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "only 0 bytes"),
        (b"ftrt" + bytes(100), "an engine of tensorrt, not of tensorrt_rtx"),
        (b"version https://git-lfs.github.com/spec/v1", "it is no engine but a text"),
    ],
)
def test_engine_of_another_file_is_refused(engine_bundle, engines, data, message):
    (file,) = engine_bundle.manifest.engines
    (engine_bundle.folder / file).write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    error = refusal(changed_passport(acknowledged(engine_bundle, file), engine_sha256=sha256))
    assert isinstance(error, BundleError)
    assert message in error.message
    assert "deploykit build-trt" in error.hint


def test_engines_of_an_invalid_passport(engine_bundle):
    file = f"{engine_bundle.manifest.engines[0]}.json"
    (engine_bundle.folder / file).write_text("{}")
    with pytest.raises(BundleError, match="is damaged") as caught:
        engines_of(acknowledged(engine_bundle, file))
    assert "deploykit build-trt" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "1.0.0.1"}, "was built by tensorrt_rtx 1.0.0.1 and runs on no other"),
        ({"targets": ("sm120",)}, f"this machine has {RTX_4070} (sm89)"),
    ],
)
def test_engine_that_does_not_fit_names_the_build(engine_bundle, engines, fields, message):
    error = refusal(changed_passport(engine_bundle, **fields))
    assert isinstance(error, DeviceError)
    assert message in error.message
    assert error.hint == (
        "Build one: deploykit build-trt --flavour tensorrt_rtx --target sm89 --precision fp16"
    )
    assert "\n" not in error.message
    assert engines.sessions == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine_sha256": "0" * 64}, "is not this engine's"),
        ({"deploy_graph_sha256": "0" * 64}, "another deploy/fp16.onnx than the bundle has now"),
        ({"deploy_graph": "deploy/int8.onnx"}, "another deploy/int8.onnx than the bundle has now"),
    ],
)
def test_engines_of_a_foreign_passport(engine_bundle, fields, message):
    bundle = changed_passport(engine_bundle, **fields)
    with pytest.raises(BundleError, match=message) as caught:
        engines_of(bundle)
    assert "deploykit build-trt" in caught.value.hint
    damaged = []
    assert engines_of(bundle, on_damage=damaged.append) == []
    assert [error.message for error in damaged] == [caught.value.message]


def test_engine_does_not_open_where_the_manifest_contradicts_its_graph(engine_bundle):
    """An engine says nothing of labels and thresholds, so its graph is asked."""
    labels = engine_bundle.manifest.labels
    other = edited(engine_bundle, labels=msgspec.structs.replace(labels, names=labels.names[::-1]))
    assert "was exported with deploykit.labels" in refusal(other).message
    (other.folder / other.manifest.deploy["fp16"]).unlink()  # a copy without the graphs
    assert "was exported with" not in refusal(other).message


def test_engine_does_not_open_without_gpu(engine_bundle, no_gpu):
    assert "no NVIDIA driver" in refusal(engine_bundle).message


def test_engine_does_not_open_without_tensorrt(engine_bundle, rtx_4070, monkeypatch):
    def open_none(flavour):
        raise DependencyError(f"{flavour} is not installed.", hint="Install it.")

    monkeypatch.setattr("deploykit.engine.flavour.open_flavour", open_none)
    with pytest.raises(DependencyError, match="tensorrt_rtx is not installed"):
        open_bundle_engine(engine_bundle, engines_of(engine_bundle)[0])


def test_open_bundle_engine_follows_the_passport(engine_bundle, engines):
    profile = Profile(min_batch=2, opt_batch=4, max_batch=4)
    bundle = changed_passport(engine_bundle, profile=profile)
    (engine,) = engines_of(bundle)
    with open_bundle_engine(bundle, engine) as session:
        spec = session.spec
    assert (spec.runtime, spec.graph, spec.device) == ("tensorrt_rtx", engine.file, RTX_4070)
    assert (spec.precision, spec.largest_batch, spec.classes) == ("fp16", 4, 3)
    assert engines.plans == [(bundle.folder / engine.file).read_bytes()]


def test_verify_takes_the_newest_engine_that_fits(several, engines):
    """Those for other GPUs are skipped with a note; an older one of the same kind is not asked."""
    events = []
    result = verify_bundle(several, VerifyRequest(runtime="tensorrt_rtx"), events.append)
    assert result.passed
    assert [v.candidate.graph.split("-")[2:4] for v in result.verdicts] == [
        ["portable", "fp32"],
        ["sm89", "fp16"],
    ]
    (note,) = (e.message for e in events if "skipped" in getattr(e, "message", ""))
    assert "was built for compute capability sm120" in note


def test_verify_without_fitting_engine_names_the_reason(several, engines):
    only = edited(several, engines=several.manifest.engines[-1:])
    with pytest.raises(DeviceError, match="was built for compute capability sm120"):
        verify_bundle(only, VerifyRequest(runtime="tensorrt_rtx"))


def test_self_test_of_an_engine_is_kept(engine_bundle, engines):
    events = []
    (engine,) = engines_of(engine_bundle)
    with open_bundle_engine(engine_bundle, engine) as session:
        self_test(engine_bundle, session, events.append)
    proof = kept(open_bundle(engine_bundle.folder), engine.file, "tensorrt_rtx", RTX_4070)
    assert (proof.kind, proof.reference_kind, proof.images.kind) == ("executed", "golden", "golden")
    assert proof.images.count == 8
    assert f"{engine.file} gives the recorded answers on {RTX_4070}" in str(events)


def test_self_test_is_kept_beside_a_proof(engine_bundle, engines):
    verify_bundle(engine_bundle, VerifyRequest(runtime="tensorrt_rtx"))
    proven = open_bundle(engine_bundle.folder)
    (engine,) = engines_of(proven)
    with open_bundle_engine(proven, engine) as session:
        self_test(proven, session, silent)
    after = open_bundle(engine_bundle.folder).manifest.verdicts
    assert after[:-1] == proven.manifest.verdicts
    assert after[-1].is_recorded


def test_self_test_needs_whole_golden_answers(engine_bundle, engines):
    (engine_bundle.folder / GOLDEN).write_bytes(b"")
    with (
        open_bundle_engine(engine_bundle, engines_of(engine_bundle)[0]) as session,
        pytest.raises(BundleError, match=GOLDEN),
    ):
        self_test(engine_bundle, session, silent)
