"""Every candidate of a machine side by side, each in a process of its own."""

import re

import bench_runs
import msgspec
import pytest
import timm
import torch
from bench_runs import BF16, FP32, OPENVINO, ORT, benched
from bundle_files import edited
from made_benchmarks import measured
from openvino_cpu import needs_bf16
from PIL import Image

from deploykit.bundle.manifest import sha256_of
from deploykit.commands.bench import run as bench
from deploykit.commands.bench.candidates import list_candidates
from deploykit.commands.bench.measure import OpenCandidate
from deploykit.commands.bench.process import CandidateProcess
from deploykit.commands.bench.results import PLAIN, TORCH, Skipped, name_of
from deploykit.commands.bench.run import BenchRequest, accept_recommended, take_turns
from deploykit.commands.build.run import BuildRequest, build_engine
from deploykit.errors import (
    BundleError,
    ImagesError,
    InputError,
    MissingError,
)
from deploykit.inference.candidates import Candidate
from deploykit.system.progress import Note, Step, silent


def test_list_candidates_without_gpu(bundle, no_gpu):
    able, skipped = list_candidates(bundle, silent)
    assert able[0] == PLAIN
    assert {ORT, OPENVINO, BF16} == set(able[1:])
    reasons = {name_of(each.candidate): each.reason for each in skipped}
    assert reasons.keys() == {"torch fp32", "onnxruntime-cuda fp32"}
    assert "NVIDIA driver" in reasons["onnxruntime-cuda fp32"]
    assert "code of its own" in reasons["torch fp32"]


def test_list_candidates_for_every_graph(bundle, no_gpu):
    graphs = {"fp32": FP32, "fp16": FP32, "int8": FP32}
    able, skipped = list_candidates(edited(bundle, deploy=graphs), silent)
    assert {name_of(each) for each in able[1:]} == {
        "onnxruntime-cpu fp32",
        "onnxruntime-cpu int8",
        "openvino fp32",
        "openvino bf16",
        "openvino int8",
    }
    # A rehearsal of FP16 is no way to run anything.
    assert {name_of(each.candidate) for each in skipped if each.candidate != TORCH} == {
        "onnxruntime-cuda fp32",
        "onnxruntime-cuda fp16",
    }


def test_list_candidates_has_newest_engine_that_fits(engine_bundle, engines):
    older = engine_bundle.manifest.engines[-1]
    bundle = build_engine(engine_bundle, BuildRequest(targets=("sm120",))).bundle
    assert bundle.manifest.engines[-1] != older
    able, _ = list_candidates(bundle, silent)
    assert [each.file for each in able if each.runtime == "tensorrt_rtx"] == [older]


def test_list_candidates_skips_newest_engine_if_none_fits(engine_bundle, no_gpu):
    bundle = build_engine(engine_bundle, BuildRequest(targets=("sm120",))).bundle
    _, skipped = list_candidates(bundle, silent)
    (engine,) = (each.candidate for each in skipped if each.candidate.runtime == "tensorrt_rtx")
    assert engine.file == bundle.manifest.engines[-1]


def test_bench_measures_each_candidate(bundle, only):
    only(PLAIN, ORT, OPENVINO)
    found, events = benched(bundle)
    assert {each.candidate for each in found.measured} == {PLAIN, ORT, OPENVINO}
    assert (found.rounds, found.sample) == (3, 45)
    for each in found.measured:
        # The smallest size runs in any case, others as long as there is time.
        assert each.timings[0].batch == 1
        assert {timing.batch for timing in each.timings} | {*each.skipped_batches} == {1, 4}
        assert all(timing.seconds for timing in each.timings)
        assert len(each.rates) == 3
        assert each.images_per_second > 0
        assert 0 < each.first_answer_seconds < 60
        assert 20 * 2**20 < each.peak_memory_bytes < 8 * 2**30
        assert (each.labelled, each.correct) == (45, 45)
    batches = {each.candidate: each.batch_size for each in found.measured}
    assert batches == {PLAIN: 2, ORT: 2, OPENVINO: 8}
    stages = [event.stage for event in events if isinstance(event, Step)]
    assert {"starting", "measuring"} <= set(stages)
    notes = [event.message for event in events if isinstance(event, Note)]
    assert notes[-2] == "starting 3 candidates; then they are measured"
    assert re.match(r"started in \d+ s; measuring takes about \d+ s", notes[-1])
    assert 0 < found.starting_seconds < found.seconds


def test_bench_accepts_none_if_one_is_damaged(bundle, only):
    only(PLAIN, ORT)
    (bundle.folder / FP32).write_bytes(b"damaged")
    found, _ = benched(bundle)
    assert [each.candidate for each in found.measured] == [PLAIN]
    (damaged,) = found.damaged
    assert damaged.candidate == ORT
    assert "is not the file that was exported" in damaged.reason
    with pytest.raises(BundleError, match=r"not every candidate .*: .*is not the file") as caught:
        accept_recommended(bundle, found)
    assert "bench" in caught.value.hint


def test_bench_accepts_despite_a_damaged_engine(bundle, only, monkeypatch):
    """It may as well be older than its graph, which is whole."""
    engine = Candidate("engines/a.engine", "tensorrt_rtx", "fp16")
    only(ORT)
    listed = bench.list_candidates
    monkeypatch.setattr(
        bench, "list_candidates", lambda *given: ([*listed(*given)[0], engine], listed(*given)[1])
    )
    found, _ = benched(bundle)
    assert engine in [each.candidate for each in found.skipped]
    assert found.damaged == ()
    assert accept_recommended(bundle, found).runtime == ORT.runtime


@pytest.mark.parametrize("method", ["predict_sample", "compute", "measured"])
def test_bench_skips_a_candidate_whose_process_dies(bundle, only, monkeypatch, method):
    """Whenever it dies; the others are measured."""
    only(PLAIN, ORT)
    ask = CandidateProcess.ask

    def ask_doomed(process, asked, *given):
        dies = asked.__name__ == method and process.candidate == ORT
        return ask(process, bench_runs.die if dies else asked, *given)

    monkeypatch.setattr(CandidateProcess, "ask", ask_doomed)
    found, _ = benched(bundle)
    assert [each.candidate for each in found.measured] == [PLAIN]
    (reason,) = (each.reason for each in found.skipped if each.candidate == ORT)
    assert reason == "its process ended with exit code 7: out of luck"


FOUND = measured(ORT, 9.0)


class Turns:
    """Stands for a candidate's process: writes down who was asked what, and may fail."""

    def __init__(self, candidate, name, asked, fails_at=None):
        self.candidate, self.name, self.asked, self.fails_at = candidate, name, asked, fails_at

    def ask(self, method, *given):
        self.asked.append((self.name, method.__name__))
        if len(self.asked) == self.fails_at:
            return Skipped(candidate=self.candidate, reason="it is full")
        return FOUND if method is OpenCandidate.measured else None

    def close(self):
        self.asked.append((self.name, "close"))


def test_take_turns_rotates_first_candidate():
    asked = []
    processes = [Turns(ORT, "a", asked), Turns(OPENVINO, "b", asked)]
    found, _ = take_turns(processes, BenchRequest(repeats=3), silent)
    turns = [("a", "b"), ("b", "a"), ("a", "b")]
    assert asked == [
        *((name, method) for turn in turns for method in ("compute", "predict") for name in turn),
        ("a", "measured"),
        ("b", "measured"),
    ]
    assert found == [FOUND, FOUND]


def test_take_turns_closes_a_failed_candidate():
    asked = []
    processes = [Turns(ORT, "a", asked), Turns(OPENVINO, "b", asked, fails_at=5)]
    found, (skipped,) = take_turns(processes, BenchRequest(repeats=3), silent)
    assert asked[4:6] == [("b", "compute"), ("b", "close")]
    assert "b" not in [name for name, _ in asked[6:]]
    assert found == [FOUND]
    assert (skipped.candidate, skipped.reason) == (OPENVINO, "it is full")


def test_bench_skips_batch_sizes_without_time(bundle, only):
    only(ORT)
    found, _ = benched(bundle, batch_sizes=(1, 10**15))
    assert found.recommended.candidate == ORT
    assert [timing.batch for timing in found.measured[0].timings] == [1]
    (reason,) = found.measured[0].skipped_batches.values()
    assert "s: give more --seconds" in reason


def test_list_candidates_has_torch_module(bundle, only, tmp_path):
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
    only(TORCH)
    found, _ = benched(edited(bundle, architecture=recorded, checkpoint=weights))
    assert [each.word for each in found.measured] == ["reference"]
    assert found.measured[0].spec.runtime == "torch"
    assert found.recommended is None


def test_bench_without_any_running_candidate(bundle, only):
    only(ORT)
    (bundle.folder / FP32).write_bytes(b"damaged")
    with pytest.raises(InputError, match="is not the file that was exported"):
        benched(bundle)
    only()
    with pytest.raises(MissingError, match="No candidate of colours runs here"):
        benched(bundle)


def test_bench_counts_readable_images_only(bundle, only, tmp_path):
    only(ORT)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "bad.png").write_bytes(b"")
    with pytest.raises(ImagesError, match="Not one image can be read"):
        benched(bundle, images=photos)
    Image.new("RGB", (20, 20)).save(photos / "good.png")
    found, _ = benched(bundle, images=photos)
    assert found.sample == 1
    assert found.measured[0].labelled == 0


@needs_bf16
def test_list_candidates_has_bf16_on_openvino(bundle, only):
    only(BF16)
    found, _ = benched(bundle)
    assert found.measured[0].spec.precision == "bf16"
    assert found.measured[0].name == "openvino bf16"
