"""Every option of a machine side by side, each in a process of its own."""

import msgspec
import pytest
import timm
import torch
from bench_runs import BF16, EAGER, FP32, OPENVINO, ORT, benched
from bundle_files import edited
from openvino_cpu import needs_bf16
from PIL import Image

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import sha256_of
from deploykit.commands.bench import rounds as _bench_rounds
from deploykit.commands.bench import run as bench
from deploykit.commands.bench.messages import Begin
from deploykit.commands.bench.options import list_options
from deploykit.commands.bench.process import Process
from deploykit.commands.bench.results import PLAIN, LeftOut, Option
from deploykit.commands.bench.run import accept_recommended
from deploykit.commands.build.run import BuildRequest, build_engine
from deploykit.commands.verify.run import VerifyRequest, verify_bundle
from deploykit.errors import (
    BundleError,
    ImagesError,
    InputError,
    MissingError,
    ParityError,
    UsageError,
)
from deploykit.proof.auto import open_best
from deploykit.system.progress import Note, Step, silent


def test_the_options_of_a_machine_without_a_gpu(bundle, no_gpu):
    able, left_out = list_options(bundle, silent)
    assert able[0] == PLAIN
    assert {ORT, OPENVINO, BF16} == set(able[1:])
    reasons = {each.option.name: each.reason for each in left_out}
    assert reasons.keys() == {
        "torch fp32, eager",
        "torch fp32, channels-last",
        "onnxruntime-cuda fp32",
    }
    assert "NVIDIA driver" in reasons["onnxruntime-cuda fp32"]
    assert "code of its own" in reasons["torch fp32, eager"]


def test_every_precision_that_there_is_a_graph_for_is_an_option(bundle, no_gpu):
    graphs = {"fp32": FP32, "fp16": FP32, "int8": FP32}
    able, left_out = list_options(edited(bundle, deploy=graphs), silent)
    assert {option.name for option in able[1:]} == {
        "onnxruntime-cpu fp32",
        "onnxruntime-cpu int8",
        "openvino fp32",
        "openvino bf16",
        "openvino int8",
    }
    # A rehearsal of FP16 is no way to run anything.
    assert {each.option.name for each in left_out if each.option.is_deployable} == {
        "onnxruntime-cuda fp32",
        "onnxruntime-cuda fp16",
    }


def test_the_newest_engine_that_can_run_here_is_an_option(engine_bundle, engines):
    older = engine_bundle.manifest.engines[-1]
    bundle = build_engine(engine_bundle, BuildRequest(targets=("sm120",))).bundle
    assert bundle.manifest.engines[-1] != older
    able, _ = list_options(bundle, silent)
    assert [each.file for each in able if each.runtime == "tensorrt_rtx"] == [older]


def test_where_no_engine_can_run_the_newest_is_left_out(engine_bundle, no_gpu):
    bundle = build_engine(engine_bundle, BuildRequest(targets=("sm120",))).bundle
    _, left_out = list_options(bundle, silent)
    (engine,) = (each.option for each in left_out if each.option.runtime == "tensorrt_rtx")
    assert engine.file == bundle.manifest.engines[-1]


def test_each_option_is_measured_alone_and_end_to_end(bundle, only):
    only(PLAIN, ORT, OPENVINO)
    found, events = benched(bundle)
    assert [each.option for each in found.options] == [PLAIN, ORT, OPENVINO]
    assert (found.rounds, found.sample) == (3, 45)
    for each in found.options:
        assert [timing.batch for timing in each.timings] == [1, 4]
        assert all(len(timing.seconds) >= 3 for timing in each.timings)
        assert len(each.end_to_end.rates) == 3
        assert each.end_to_end.photos >= 8
        assert each.images_per_second > 0
        assert 0 < each.first_answer_seconds < 60
        assert 20 * 2**20 < each.peak_memory_bytes < 8 * 2**30
        assert (each.labelled, each.correct) == (45, 45)
    batches = {each.option: each.end_to_end.batch_size for each in found.options}
    assert batches == {PLAIN: 2, ORT: 2, OPENVINO: 8}
    stages = [event.stage for event in events if isinstance(event, Step)]
    assert {"starting", "measuring"} <= set(stages)


def test_an_accepted_option_is_what_auto_takes_and_says(bundle, only):
    assert verify_bundle(bundle, VerifyRequest(runtime="openvino")).passed
    bundle = open_bundle(bundle.folder)
    only(ORT)
    found, _ = benched(bundle)
    accepted = accept_recommended(bundle, found)
    assert (accepted.file, accepted.runtime, accepted.precision) == (FP32, ORT.runtime, "fp32")
    events = []
    with open_best(open_bundle(bundle.folder), progress=events.append) as session:
        assert session.spec.runtime == "onnxruntime-cpu"
    (note,) = (event.message for event in events if isinstance(event, Note))
    assert note.startswith(f"taking {FP32} in fp32 on onnxruntime-cpu, accepted from bench on ")


def test_nothing_proven_is_nothing_to_accept(bundle, only):
    only(ORT)
    bundle = edited(bundle, verdicts=())
    found, _ = benched(bundle)
    with pytest.raises(ParityError, match="Nothing can be accepted: no option that") as caught:
        accept_recommended(bundle, found)
    assert "--verify --accept" in caught.value.hint


def test_an_option_that_does_not_open_is_left_out_with_its_reason(bundle, only):
    only(PLAIN, ORT)
    (bundle.folder / FP32).write_bytes(b"damaged")
    found, _ = benched(bundle)
    assert [each.option for each in found.options] == [PLAIN]
    (damaged,) = found.damaged
    assert damaged.option == ORT
    assert "is not the file that was exported" in damaged.reason
    assert ORT not in [each.option for each in found.missing]


def test_nothing_is_accepted_by_chance_or_of_a_part_of_the_options(bundle, only):
    only(ORT)
    found, _ = benched(bundle, repeats=2)
    with pytest.raises(UsageError, match="2 rounds cannot tell"):
        accept_recommended(bundle, found)
    found, _ = benched(bundle)
    damaged = LeftOut(option=OPENVINO, reason="it has changed. Export again.", damaged=True)
    partly = msgspec.structs.replace(found, left_out=(damaged,))
    with pytest.raises(BundleError, match=r"not every option .*: it has changed") as caught:
        accept_recommended(bundle, partly)
    assert "bench" in caught.value.hint
    assert open_bundle(bundle.folder).manifest.accepted == ()


def test_a_damaged_engine_stops_no_choice(bundle, only, monkeypatch):
    """It may as well be older than its graph, which is whole."""
    engine = Option(file="engines/a.engine", runtime="tensorrt_rtx", precision="fp16")
    only(ORT)
    listed = bench.list_options
    monkeypatch.setattr(
        bench, "list_options", lambda *given: ([*listed(*given)[0], engine], listed(*given)[1])
    )
    found, _ = benched(bundle)
    assert engine in [each.option for each in found.missing]
    assert accept_recommended(bundle, found).runtime == ORT.runtime


def test_a_damaged_bundle_ends_as_everywhere(bundle, only):
    only(ORT)
    (bundle.folder / FP32).write_bytes(b"damaged")
    with pytest.raises(InputError, match="is not the file that was exported") as caught:
        benched(bundle)
    assert caught.value.exit_code == 4


def test_an_option_whose_process_dies_is_left_out_with_its_last_words(bundle, only, monkeypatch):
    only(PLAIN, ORT)

    class Dying(Process):
        def ask(self, request, kind):
            if isinstance(request, Begin) and request.option == ORT:
                self._process.kill()
            return super().ask(request, kind)

    monkeypatch.setattr(_bench_rounds, "Process", Dying)
    found, _ = benched(bundle)
    assert [each.option for each in found.options] == [PLAIN]
    (reason,) = (each.reason for each in found.left_out if each.option == ORT)
    assert "its process ended with exit code" in reason


def test_a_batch_that_memory_does_not_hold_stops_no_option(bundle, only):
    only(ORT)
    found, _ = benched(bundle, batch_sizes=(1, 10**15))
    assert found.recommended.option == ORT
    assert [timing.batch for timing in found.options[0].timings] == [1]
    assert found.options[0].refusals == {10**15: "memory does not hold so many images at once"}


def test_the_checkpoints_module_is_an_option(bundle, only, tmp_path):
    """Of a zoo's architecture; torch's answers are the reference, and never recommended."""
    resnet = timm.create_model("test_resnet", num_classes=3)
    checkpoint = tmp_path / "resnet.pth"
    torch.save(resnet.state_dict(), checkpoint)
    manifest = bundle.manifest
    recorded = msgspec.structs.replace(
        manifest.architecture, name="timm/test_resnet", origin="timm", args={}
    )
    weights = msgspec.structs.replace(
        manifest.checkpoint, path=str(checkpoint), sha256=sha256_of(checkpoint)
    )
    channels_last = msgspec.structs.replace(EAGER, channels_last=True)
    only(EAGER, channels_last)
    found, _ = benched(edited(bundle, architecture=recorded, checkpoint=weights))
    assert [each.option for each in found.options] == [EAGER, channels_last]
    assert [each.standing for each in found.options] == ["reference", "reference"]
    assert found.options[0].spec.runtime == "torch"
    assert found.recommended is None


def test_nothing_that_runs_is_an_error(bundle, only):
    only()
    with pytest.raises(MissingError, match="No option of colours runs here"):
        benched(bundle)


def test_only_photos_that_can_be_read_count(bundle, only, tmp_path):
    only(ORT)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "bad.png").write_bytes(b"")
    with pytest.raises(ImagesError, match="Not one image can be read"):
        benched(bundle, images=photos)
    Image.new("RGB", (20, 20)).save(photos / "good.png")
    found, _ = benched(bundle, images=photos)
    assert found.sample == 1
    assert found.options[0].labelled == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_sizes": ()},
        {"batch_sizes": (0,)},
        {"repeats": 0},
        {"seconds": 0.0},
        {"seconds": float("inf")},
        {"seconds": float("nan")},
        {"max_images": 0},
    ],
)
def test_numbers_that_make_no_sense(bundle, fields):
    with pytest.raises(UsageError):
        benched(bundle, **fields)


def test_repeats_limit_the_rounds(bundle, only):
    only(ORT)
    found, _ = benched(bundle, repeats=1, seconds=60.0)
    assert found.rounds == 1
    assert len(found.options[0].end_to_end.rates) == 1


@needs_bf16
def test_bf16_is_an_option_by_its_hint(bundle, only):
    only(BF16)
    found, _ = benched(bundle)
    assert found.options[0].spec.precision == "bf16"
    assert found.options[0].option.name == "openvino bf16"
