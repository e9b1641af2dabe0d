"""Real builds by TensorRT for RTX, which needs no GPU for them; running engines is pretended."""

import hashlib
import sys
from pathlib import Path

import msgspec
import pytest
from bundle_files import contents, edited, kept
from fp16_networks import DIM, make_photos

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import record_file
from deploykit.commands.build.run import BuildRequest, build_engine
from deploykit.engine.flavour import open_flavour
from deploykit.engine.passport import read_header, read_passport
from deploykit.errors import (
    BundleError,
    DependencyError,
    DeviceError,
    ImagesError,
    InputError,
    ParityError,
    UsageError,
)
from deploykit.inference.candidates import named_candidates
from deploykit.inference.engines import named_engine
from deploykit.parity.budget import Budget
from deploykit.specs.engine import Profile
from deploykit.specs.model import TensorSpec

FP16 = "deploy/fp16.onnx"

pytestmark = pytest.mark.usefixtures("rtx")


def notes_of(events):
    return [event.message for event in events if hasattr(event, "message")]


def steps_of(events):
    return [event for event in events if hasattr(event, "stage")]


def test_build_engine_fp16_without_gpu(bundle, no_gpu, rtx):
    result = build_engine(bundle, BuildRequest(targets=("SM89",)))
    assert result.passed
    assert (result.audit, result.verification) == (None, None)
    passport = result.passport
    assert passport == read_passport(result.bundle.folder / f"{result.engine}.json")
    assert (passport.flavour, passport.version) == ("tensorrt_rtx", rtx.version)
    assert (passport.targets, passport.gpu, passport.profile) == (("sm89",), None, Profile())
    assert passport.inputs == (TensorSpec(name="images", dtype="uint8", shape=("N", 16, 16, 3)),)
    assert passport.outputs == (TensorSpec(name="logits", dtype="float32", shape=("N", 3)),)
    assert (passport.precision, passport.kept) == ("fp16", result.tuning.kept)
    assert passport.deploy_graph == FP16
    assert passport.deploy_graph_sha256 == record_file(bundle.folder / FP16).sha256
    plan = (bundle.folder / result.engine).read_bytes()
    assert passport.engine_sha256 == hashlib.sha256(plan).hexdigest()
    assert (passport.engine_bytes, read_header(plan).targets) == (len(plan), ("sm89",))
    assert 0 < passport.build_seconds < 60
    assert passport.proof == result.tuning.proof
    assert (passport.proof.kind, passport.proof.runtime) == ("rehearsed", "rehearsal")


def test_build_engine_records_engine_and_passport(bundle, no_gpu):
    before = bundle.manifest
    result = build_engine(bundle, BuildRequest())
    manifest = result.bundle.manifest
    version = ".".join(result.passport.version.split(".")[:3])
    assert result.engine == f"engines/tensorrt_rtx-{version}-portable-fp16-b1-8-32.engine"
    assert manifest == open_bundle(bundle.folder).manifest
    assert manifest.engines == (result.engine,)
    new = (FP16, result.engine, f"{result.engine}.json")
    assert manifest.files == {
        **before.files,
        **{name: record_file(bundle.folder / name) for name in new},
    }
    assert {*contents(bundle)} == {*manifest.files, "bundle.json"}


def test_build_engine_kept_nodes_in_passport(toy, no_gpu):
    result = build_engine(toy("Overflow"), BuildRequest(targets=("sm89",)))
    assert [node.module for node in result.passport.kept] == ["middle.1", "middle.2"]
    assert "FP16 ends at 65504" in result.passport.kept[0].reason


def test_build_engine_again_uses_existing_graph(engine_bundle, no_gpu):
    before = engine_bundle.manifest
    events = []
    result = build_engine(engine_bundle, BuildRequest(targets=("sm89",)), events.append)
    assert result.tuning is None
    assert result.bundle.manifest.files[FP16] == before.files[FP16]
    assert result.passport.proof == kept(before, FP16, "rehearsal", "CPU")
    assert f"{FP16} is there, rehearsed on 23 images (--images makes it anew)" in notes_of(events)
    assert {step.stage for step in steps_of(events)} == {"building"}
    assert result.bundle.manifest.engines == (*before.engines, result.engine)


def test_build_engine_makes_an_unproven_graph_again(engine_bundle, no_gpu):
    proofs = tuple(p for p in engine_bundle.manifest.verdicts if p.graph != FP16)
    result = build_engine(edited(engine_bundle, verdicts=proofs), BuildRequest())
    assert result.tuning is not None


@pytest.mark.parametrize(
    ("asked", "again"), [(0.2, False), (0.01, True), (None, False)], ids=["20 %", "1 %", "none"]
)
def test_build_engine_takes_no_graph_of_a_wider_budget(engine_bundle, no_gpu, asked, again):
    def turned(proof):
        """As if 3 of the decisions had changed, within the 20 % that were allowed."""
        if proof.graph != FP16:
            return proof
        found = msgspec.structs.replace(proof.measurement, flips=3)
        return msgspec.structs.replace(proof, measurement=found, budget=Budget(max_flip_rate=0.2))

    bundle = edited(engine_bundle, verdicts=tuple(map(turned, engine_bundle.manifest.verdicts)))
    budget, events = None if asked is None else Budget(max_flip_rate=asked), []
    request = BuildRequest(targets=("sm89",), budget=budget)
    result = build_engine(bundle, request, events.append)
    assert (result.tuning is not None) == again
    assert result.passport.proof.measurement.flips == (0 if again else 3)
    told = (
        f"{FP16} does not keep to this budget (3 of 23 images changed their class; at most 1% "
        "may): it is made again"
    )
    assert (told in notes_of(events)) == again


def test_build_engine_asks_for_graphs_by_its_own_command(bundle, no_gpu, monkeypatch, posix_shell):
    def refuse(bundle, request, progress):
        raise ChosenError(request.command(bundle, Budget(max_flip_rate=0.05)))

    monkeypatch.setattr("deploykit.commands.build.run.proven_graph", refuse)
    request = BuildRequest(
        precision="int8",
        flavour="tensorrt_rtx",
        targets=("sm86", "sm89"),
        profile=Profile(max_batch=64),
        workspace_bytes=2**30,
        diagnose=False,
    )
    with pytest.raises(ChosenError) as caught:
        build_engine(bundle, request)
    assert str(caught.value) == (
        f"deploykit build-trt --bundle {bundle.folder} --flavour tensorrt_rtx --target sm86 "
        "--target sm89 --max-batch 64 --workspace 1GiB --precision int8 --no-diagnose "
        "--max-flips 5%"
    )


def test_build_engine_on_new_images_outdates_engines(toy, tmp_path, no_gpu, monkeypatch):
    first = build_engine(toy("Overflow"), BuildRequest(targets=("sm120",)))
    # Which would show what the dim photos do not, and keep the same nodes in FP32.
    monkeypatch.setattr("deploykit.proof.extremes.extreme_images", lambda size: {})
    photos = make_photos(tmp_path / "dim", DIM)
    request = BuildRequest(targets=("sm121",), images=photos)
    second = build_engine(first.bundle, request)
    assert second.tuning.proof.images.source == str(photos)
    assert second.passport.deploy_graph_sha256 != first.passport.deploy_graph_sha256
    assert second.bundle.manifest.engines == (first.engine, second.engine)
    with pytest.raises(BundleError, match=f"another {FP16} than the bundle has now") as caught:
        named_engine(second.bundle, first.engine)
    assert "deploykit build-trt" in caught.value.hint
    notes = []
    (candidate,) = named_candidates(second.bundle, "tensorrt_rtx", None, notes.append)
    assert candidate.file == second.engine
    assert first.engine in notes[0].message


def test_build_engine_of_the_same_name_replaces(engine_bundle, no_gpu):
    for file in (engine_bundle.folder / "engines").iterdir():
        file.write_bytes(b"damaged")
    other = build_engine(engine_bundle, BuildRequest(targets=("sm89",)))
    again = build_engine(other.bundle, BuildRequest())
    manifest = again.bundle.manifest
    assert manifest.engines == (other.engine, again.engine)  # the newest last
    assert again.engine in engine_bundle.manifest.engines
    for name in manifest.files:
        again.bundle.checked(name)
    assert len(list((again.bundle.folder / "engines").iterdir())) == 4


def test_build_engine_for_several_gpus(engine_bundle, no_gpu):
    request = BuildRequest(targets=("sm120", "sm86"), profile=Profile(min_batch=2, max_batch=16))
    result = build_engine(engine_bundle, request)
    assert result.engine.endswith("-sm86+sm120-fp16-b2-8-16.engine")
    assert result.passport.needs == "compute capability sm86 or sm120"
    plan = (result.bundle.folder / result.engine).read_bytes()
    assert read_header(plan).targets == ("sm86", "sm120")


def test_build_engine_fp32_needs_no_fp16_graph(bundle, no_gpu):
    result = build_engine(bundle, BuildRequest(precision="fp32"))
    assert result.tuning is None
    assert not (bundle.folder / FP16).exists()
    passport = result.passport
    assert (passport.precision, passport.deploy_graph) == ("fp32", "deploy/fp32.onnx")
    assert (passport.proof.kind, passport.proof.runtime) == ("executed", "onnxruntime-cpu")
    assert result.engine.endswith("-portable-fp32-b1-8-32.engine")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_build_engine_refuses_an_unproven_bundle(bundle, no_gpu, precision):
    unproven = edited(bundle, verdicts=())
    before = contents(unproven)
    with pytest.raises(ParityError, match="not proven"):
        build_engine(unproven, BuildRequest(precision=precision))
    assert contents(unproven) == before


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"targets": ("sm90",)}, UsageError, "no target 'sm90'"),
        ({"targets": ("portable", "sm89")}, UsageError, "exclude each other"),
        ({"flavour": "tensorrt", "targets": ("sm89",)}, UsageError, "this machine only"),
        ({"targets": ("current",)}, DeviceError, "no NVIDIA driver"),
        ({"flavour": "tensorrt"}, DeviceError, "no NVIDIA driver"),
        ({"precision": "fp32", "search_seconds": 5}, UsageError, "no node is searched for"),
        ({"precision": "fp32", "images": Path("nowhere")}, ImagesError, "nowhere"),
        (
            {"precision": "fp32", "expected": Path("no.csv")},
            InputError,
            r"no\.csv",
        ),
    ],
)
def test_build_engine_refuses_impossible_requests(bundle, no_gpu, request_, error, message):
    before = contents(bundle)
    with pytest.raises(error, match=message) as caught:
        build_engine(bundle, BuildRequest(**request_))
    assert contents(bundle) == before
    assert caught.value.exit_code == error.exit_code


def test_profile_refuses_impossible_batch_sizes():
    with pytest.raises(UsageError, match="min 9, opt 8"):
        Profile(min_batch=9)


def test_build_engine_with_too_small_workspace(engine_bundle, no_gpu):
    before = contents(engine_bundle)
    request = BuildRequest(targets=("sm89",), workspace_bytes=1)
    with pytest.raises(UsageError, match="workspace") as caught:
        build_engine(engine_bundle, request)
    assert "--workspace allows 1 bytes" in caught.value.hint
    assert contents(engine_bundle) == before


class ChosenError(Exception):
    """Ends a build where its flavour is chosen."""


@pytest.mark.parametrize(
    ("gpu", "installed", "targets", "chosen"),
    [
        ("no_gpu", ("tensorrt_rtx",), (), "tensorrt_rtx"),
        ("no_gpu", ("tensorrt", "tensorrt_rtx"), (), "tensorrt_rtx"),
        ("rtx_4070", ("tensorrt_rtx",), (), "tensorrt_rtx"),
        ("rtx_4070", ("tensorrt", "tensorrt_rtx"), (), "tensorrt"),
        ("rtx_4070", ("tensorrt",), (), "tensorrt"),
        ("rtx_4070", ("tensorrt", "tensorrt_rtx"), ("current",), "tensorrt"),
        ("rtx_4070", ("tensorrt", "tensorrt_rtx"), ("sm120",), "tensorrt_rtx"),
    ],
)
def test_build_engine_chooses_an_installed_flavour(
    bundle, request, monkeypatch, gpu, installed, targets, chosen
):
    def open_none(flavour):
        raise ChosenError(flavour)

    request.getfixturevalue(gpu)
    monkeypatch.setattr("deploykit.commands.build.run.installed_flavours", lambda: installed)
    monkeypatch.setattr("deploykit.commands.build.run.open_flavour", open_none)
    events = []
    with pytest.raises(ChosenError, match=f"^{chosen}$"):
        build_engine(bundle, BuildRequest(targets=targets), events.append)
    (note,) = notes_of(events)
    assert note.startswith(f"building with {chosen}, ")
    assert "--flavour" in note


@pytest.mark.parametrize(
    ("gpu", "installed", "targets", "hints"),
    [
        ("no_gpu", (), (), ["rtx"]),
        ("no_gpu", ("tensorrt",), (), ["rtx"]),
        ("rtx_4070", (), (), ["rtx", "tensorrt"]),
        ("rtx_4070", ("tensorrt",), ("sm120",), ["rtx"]),
    ],
)
def test_build_engine_without_flavour_says_what_to_install(
    bundle, request, monkeypatch, gpu, installed, targets, hints
):
    request.getfixturevalue(gpu)
    monkeypatch.setattr("deploykit.commands.build.run.installed_flavours", lambda: installed)
    before = contents(bundle)
    with pytest.raises(DependencyError, match="TensorRT for RTX is not installed") as caught:
        build_engine(bundle, BuildRequest(targets=targets))
    for extra in hints:
        assert f'pip install "deploykit[{extra}]"' in caught.value.hint
    assert contents(bundle) == before


def test_build_engine_with_missing_named_flavour(bundle, no_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr("deploykit.commands.build.run.open_flavour", open_flavour.__wrapped__)
    before = contents(bundle)
    with pytest.raises(DependencyError, match="tensorrt_rtx is not installed") as caught:
        build_engine(bundle, BuildRequest(flavour="tensorrt_rtx"))
    assert "deploykit[rtx]" in caught.value.hint
    assert contents(bundle) == before


def test_build_engine_ctrl_c_leaves_nothing(engine_bundle, no_gpu):
    before = contents(engine_bundle)

    def interrupt(event):
        if getattr(event, "stage", "").startswith("building") and event.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(engine_bundle, BuildRequest(targets=("sm89",)), interrupt)
    assert contents(engine_bundle) == before


def test_build_engine_counts_its_steps(engine_bundle, no_gpu):
    events = []
    build_engine(engine_bundle, BuildRequest(targets=("sm89",)), events.append)
    steps = steps_of(events)
    assert steps[0].stage == "building"
    assert len({step.detail for step in steps}) > 3
    assert [step.done for step in steps] == sorted(step.done for step in steps)
