"""Graphs within what the user allows: made, judged again, offered."""

import json
import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from bundle_files import contents
from fp16_networks import BRIGHT, make_photos

from deploykit.bundle.folder import deploy_graph, open_bundle
from deploykit.commands.app import run
from deploykit.commands.quantize.int8 import Int8
from deploykit.commands.quantize.offers import offer_lines, offers_of, speed_text
from deploykit.commands.quantize.request import QuantizeRequest
from deploykit.commands.quantize.run import quantize_bundle
from deploykit.commands.quantize.text import quantization_text
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import ParityError, UsageError
from deploykit.inference.candidates import Candidate
from deploykit.parity.answers import Answers
from deploykit.parity.budget import Budget
from deploykit.parity.tolerance import MIN_IMAGES, tolerance_for
from deploykit.proof.auto import open_best
from deploykit.proof.policy import status
from deploykit.proof.self_test import self_test
from deploykit.proof.verdict import judge_answers
from deploykit.runtime.opener import CPU, open_graph
from deploykit.specs.model import Labels
from deploykit.specs.session import SessionSpec
from deploykit.system.progress import Note, silent

INT8 = deploy_graph("int8")
STRATEGY = "deploykit.commands.quantize.int8"
NO_FLIP = Budget(max_flip_rate=0)
PART = Int8.searched_part
LABELS = Labels(names=("hen", "owl"), source="test")


class Turning:
    """A session that answers about every nth image otherwise, decidedly."""

    def __init__(self, session, every):
        self.spec, self.close, self._session, self._every = (
            *(session.spec, session.close, session),
            every,
        )

    def run(self, images):
        logits = self._session.run(images)
        for row, image in enumerate(images):  # by its pixels: in any batch it is the same ones
            if int(image.sum()) % self._every == 0:
                logits[row] = np.roll(logits[row], 1)
        return logits

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def turning(monkeypatch):
    """Let INT8 graphs answer about every nth image otherwise."""

    def turn(every):
        for place in (f"{STRATEGY}.open_graph", "deploykit.inference.candidates.open_graph"):

            def turned(graph, **options):
                session = open_graph(graph, **options)
                return Turning(session, every) if options["precision"] == "int8" else session

            monkeypatch.setattr(place, turned)

    return turn


def photos(tmp_path, count=40):
    return make_photos(tmp_path / "photos", BRIGHT, count=count)


def verdict_of(flips, images=64, labelled=0, precision="int8"):
    reference = np.tile([[4.0, 0.0]], (images, 1)).astype(np.float32)
    candidate = reference.copy()
    candidate[:flips] = candidate[:flips, ::-1]
    paths = tuple(f"{i}.jpg" for i in range(images))
    answers = Answers(paths, (images,), reference, (candidate,))
    spec = SessionSpec(
        runtime=CPU, graph=INT8, precision=precision, device="CPU", input_size=(8, 8), classes=2
    )
    expected = dict.fromkeys(paths[:labelled], ("hen",))
    (verdict,) = judge_answers(answers, [spec], LABELS, expected=expected)
    return verdict


def test_offers_are_the_least_and_the_fewest_nodes():
    failing = [
        (frozenset(), verdict_of(6)),
        (frozenset("ab"), verdict_of(2)),
        (frozenset("abc"), verdict_of(2)),
        (frozenset("a"), verdict_of(4)),
    ]
    least, fewest = offers_of(failing, None, PART)
    # 2 of 64 are 3.1 %, which is three fifths of 5.2 %.
    assert (least.budget, least.nodes) == (Budget(max_flip_rate=0.06), frozenset("ab"))
    assert (fewest.budget, fewest.nodes) == (Budget(max_flip_rate=0.16), frozenset())
    lines = [
        *offer_lines([least, fewest], "INT8", "the search", [speed_text(3.44, "openvino"), ""])
    ]
    assert lines[0] == (
        "INT8 with 2 nodes in FP32 passes with --max-flips 6%: on the images of the search 3.1 % "
        "of the decisions changed (2 of 64); 3.4 times as fast as FP32 on openvino."
    )


def test_offers_of_what_flips_nothing_allow_one_percent():
    (offer,) = offers_of([(frozenset(), verdict_of(0))], None, PART)
    assert offer.budget == Budget(max_flip_rate=0.01)


def test_offers_of_nothing_sensible_are_none():
    assert offers_of([(frozenset(), verdict_of(30))], None, PART) == []
    assert offers_of([(frozenset(), verdict_of(0, images=28))], None, PART) == []
    endless = verdict_of(1)
    endless = msgspec.structs.replace(
        endless, measurement=msgspec.structs.replace(endless.measurement, non_finite=2)
    )
    extreme = verdict_of(1).with_extremes(("NaN or infinity on white images",))
    assert offers_of([(frozenset(), endless), (frozenset(), extreme)], None, PART) == []


def test_offers_are_of_the_kind_that_was_asked_for():
    failing = [(frozenset(), verdict_of(2, labelled=64))]
    (offer,) = offers_of(failing, Budget(max_accuracy_drop=1), PART)
    assert offer.budget == Budget(max_accuracy_drop=6)
    (line,) = offer_lines([offer], "INT8", "the search", [speed_text(None, "openvino")])
    # Agresti and Min: 2/66, and 1.96 times sqrt(3 - 4/66)/66 to either side.
    assert line.endswith(
        "accuracy 3.1 points lower on the same 64 images (95 %: 8.1 lower to 2.1 higher)."
    )
    (both,) = offers_of(failing, Budget(max_flip_rate=0.02, max_accuracy_drop=10), PART)
    assert both.budget == Budget(max_flip_rate=0.06, max_accuracy_drop=10)


@pytest.mark.parametrize("asked", [0.1, 0.3])
def test_offers_are_never_below_what_was_asked_for(asked):
    """Nor is there none because somebody allows more than most would."""
    failing = [(frozenset(), verdict_of(2, labelled=64))]
    (offer,) = offers_of(failing, Budget(max_flip_rate=asked, max_accuracy_drop=1), PART)
    assert offer.budget == Budget(max_flip_rate=asked, max_accuracy_drop=6)
    assert offers_of([(frozenset(), verdict_of(30))], Budget(max_flip_rate=asked), PART) == []


def test_offers_of_few_labelled_images_are_of_no_accuracy():
    """Of one image the accuracy could fall by all or by nothing."""
    asked = Budget(max_accuracy_drop=1)
    for labelled, offers in (MIN_IMAGES - 1, 0), (MIN_IMAGES, 1):
        failing = [(frozenset(), verdict_of(1, images=128, labelled=labelled))]
        assert len(offers_of(failing, asked, PART)) == offers


@pytest.mark.parametrize("images", range(MIN_IMAGES, 130, 7))
def test_offers_hold_whatever_binary_fractions_add(images):
    """9 of 125 are 7.2 %, and 0.6 * 12 is less than 7.2."""
    for count, flips in (images, min(images // 10, 11)), (125, 9):
        failing = [(frozenset(), verdict_of(flips, images=count, labelled=count))]
        for asked in None, Budget(max_accuracy_drop=1):
            (offer,) = offers_of(failing, asked, PART)
            tolerance = tolerance_for("int8", offer.budget).part(PART)
            assert not tolerance.reasons(failing[0][1].measurement)


@pytest.fixture
def colours(toy):
    return toy("Colours")


def test_quantize_offers_the_best_it_found(colours, tmp_path, turning, capsys):
    turning(20)
    before = contents(colours)
    command = ["quantize", "--bundle", str(colours.folder), "--images", str(photos(tmp_path))]
    command += ["--runtime", CPU, "--no-diagnose"]
    assert run(command) == 3
    assert contents(colours) == before
    told = capsys.readouterr().err
    rate = re.search(
        r"passes with --max-flips (\d+%): on the images of the search [\d.]+ % of the decisions "
        r"changed \(\d of 60\); accuracy ",
        told,
    )
    assert rate, told
    (line,) = {line for line in told.splitlines() if line.startswith("deploykit quantize")}
    assert line.endswith(f"--runtime {CPU} --no-diagnose --max-flips {rate[1]}")


def test_quantize_request_command_is_what_was_run(bundle, posix_shell):
    request = QuantizeRequest("int8", cpu="any", search_seconds=5, budget=Budget(max_flip_rate=0.1))
    assert request.command(bundle, Budget(max_accuracy_drop=2)) == (
        f"deploykit quantize --bundle {bundle.folder} --precision int8 --for any "
        "--search-seconds 5 --max-accuracy-drop 2"
    )
    building = QuantizeRequest("fp16", diagnose=False, asked_by=("build-trt", "--target", "sm89"))
    assert building.command(bundle, Budget(max_flip_rate=0.05)) == (
        f"deploykit build-trt --bundle {bundle.folder} --target sm89 --precision fp16 "
        "--no-diagnose --max-flips 5%"
    )


@pytest.mark.parametrize("option", [["--for", "avx2"], ["--runtime", "openvino"]])
def test_quantize_fp16_is_for_no_cpu(bundle, capsys, option):
    before = contents(bundle)
    command = ["quantize", "--bundle", str(bundle.folder), "--precision", "fp16", *option]
    assert run(command) == 2
    assert "made for GPUs" in capsys.readouterr().err
    assert contents(bundle) == before


@pytest.fixture
def made(toy, tmp_path, turning):
    """INT8 that changes some decisions, within its budget; and its photos."""
    turning(12)
    folder = photos(tmp_path)
    request = QuantizeRequest(
        images=folder, runtime=CPU, graphs=(INT8,), budget=Budget(max_flip_rate=0.4)
    )
    result = quantize_bundle(toy("Colours"), request)
    assert result.passed
    assert result.graphs[0].verdict.measurement.flips > 1
    return result, folder


def test_quantize_within_a_budget_is_no_proof_for_auto(made):
    result, _ = made
    known = status(result.bundle, Candidate(INT8, CPU, "int8"))
    assert known.word == "within budget"
    assert known.proof.budget == Budget(max_flip_rate=0.4)
    assert result.bundle.manifest.searches[INT8].budget == Budget(max_flip_rate=0.4)
    with open_best(result.bundle) as session:
        assert session.spec.precision == "fp32"
    assert "budget: at most 40 % of the decisions may change" in quantization_text(result)


def test_graph_of_a_budget_is_judged_by_it_again(made):
    """By verify on photos and by the self-test; another budget that is named comes first."""
    result, folder = made
    bundle = result.bundle
    request = VerifyRequest(images=folder, runtime=CPU, precision="int8")
    (verdict,) = verify_bundle(bundle, request).verdicts
    assert (verdict.passed, verdict.budget) == (True, Budget(max_flip_rate=0.4))
    notes = []
    (verdict,) = verify_bundle(bundle, replace(request, budget=NO_FLIP), notes.append).verdicts
    assert (verdict.failed, verdict.budget) == (True, NO_FLIP)
    told = f"{INT8} on {CPU}: that it fails is not kept, as it keeps to what it was made by"
    assert told in [note.message for note in notes if isinstance(note, Note)]
    bundle = open_bundle(bundle.folder)
    assert status(bundle, Candidate(INT8, CPU, "int8")).word == "within budget"
    with open_best(bundle, runtime=CPU, precision="int8") as session:
        self_test(bundle, session, silent)
        flips = {each.measurement.flips for each in open_bundle(bundle.folder).manifest.verdicts}
    assert max(flips) > 1
    assert all(each.passed for each in open_bundle(bundle.folder).manifest.verdicts)


def test_graph_that_fails_by_its_own_budget_too_is_failed(made, turning):
    """However strict the budget is that somebody names."""
    result, folder = made
    turning(1)
    request = VerifyRequest(images=folder, runtime=CPU, precision="int8", budget=NO_FLIP)
    (verdict,) = verify_bundle(result.bundle, request).verdicts
    known = status(open_bundle(result.bundle.folder), Candidate(INT8, CPU, "int8"))
    assert (known.word, known.verdict.budget) == ("failed", Budget(max_flip_rate=0.4))
    images = verdict.measurement.images
    assert known.verdict.reasons == (f"{images} of {images} images changed their class; at most "
                                     "40% may",)  # fmt: skip


def test_quantize_accuracy_drop_on_labelled_images(toy, tmp_path, turning):
    turning(12)
    request = QuantizeRequest(
        images=photos(tmp_path), runtime=CPU, graphs=(INT8,), budget=Budget(max_accuracy_drop=40)
    )
    result = quantize_bundle(toy("Colours"), request)
    change = result.graphs[0].verdict.measurement.accuracy
    assert (change.images, change.correct) == (60, 60)
    assert change.lost == result.graphs[0].verdict.measurement.flips > 1
    text = quantization_text(result)
    assert "the accuracy may fall by at most 40 points; accuracy " in text
    strict = QuantizeRequest(
        images=request.images, runtime=CPU, graphs=(INT8,), budget=Budget(max_accuracy_drop=0)
    )
    with pytest.raises(ParityError, match="the accuracy fell by "):
        quantize_bundle(result.bundle, strict)


def test_quantize_accuracy_drop_without_labels(toy, tmp_path):
    folder = photos(tmp_path)
    plain = tmp_path / "plain"
    plain.mkdir()
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(plain / f"{i}.png")
    bundle = toy("Colours")
    request = QuantizeRequest(images=plain, budget=Budget(max_accuracy_drop=1))
    with pytest.raises(UsageError, match="no class is known") as caught:
        quantize_bundle(bundle, request)
    assert "--expected FILE" in caught.value.hint
    table = tmp_path / "labels.csv"
    rows = [f"{i}.png,{('blue', 'green', 'red')[i // 40]}" for i in range(120)]
    table.write_text("\n".join(("path,label", *rows)), encoding="utf-8")
    request = QuantizeRequest(
        images=plain, expected=table, graphs=(INT8,), budget=Budget(max_accuracy_drop=1)
    )
    (graph,) = quantize_bundle(bundle, request).graphs
    assert graph.verdict.measurement.accuracy.images == 60


@pytest.mark.parametrize("rate", ["-1%", "101%", "many", "1", "nan"])
@pytest.mark.parametrize("command", ["quantize", "verify", "bench", "build-trt"])
def test_commands_refuse_bad_budgets(bundle, capsys, command, rate):
    code = run([command, "--bundle", str(bundle.folder), "--max-flips", rate, "--json"])
    assert code == 2
    assert "--max-flips" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize(
    "command",
    ["verify --precision fp32", "verify --self-test", "build-trt --precision fp32"],
)
def test_commands_refuse_a_budget_for_fp32(bundle, capsys, command):
    code = run([*command.split(), "--bundle", str(bundle.folder), "--max-flips", "1%"])
    assert code == 2
    assert "below FP32" in capsys.readouterr().err
