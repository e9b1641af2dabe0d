"""``verify --lowest-margins``: the photos with the lowest margins, the lowest first."""

import shutil

import msgspec
import numpy as np
import pytest
from bundle_files import contents, edited, kept
from fake_session import FakeSession

from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import SearchRecord, update_manifest
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import ImagesError, UsageError
from deploykit.parity.budget import Budget
from deploykit.proof.reference import ReferenceRequest
from deploykit.specs.heads import SingleLabel
from deploykit.system.progress import Note, Step

INT8 = "deploy/int8.onnx"


@pytest.fixture
def named(network_file):
    """The user's own architecture, named as on the command line."""
    return ReferenceRequest(arch=f"{network_file}:Net")


def put_candidate(monkeypatch, answer):
    """Let every graph that is opened as a candidate answer through ``answer(images, logits)``."""
    from deploykit.inference.candidates import open_candidate

    def open_wrapped(bundle, candidate, **options):
        inner = open_candidate(bundle, candidate, **options)
        session = FakeSession(
            lambda images: answer(images, inner.run(images)), classes=3, input_size=(16, 16)
        )
        session._spec = msgspec.structs.replace(inner.spec, concurrent=False)
        return session

    monkeypatch.setattr("deploykit.commands.verify.run.open_candidate", open_wrapped)


def mined(bundle, photo_folder, count, progress=lambda event: None, **fields):
    request = VerifyRequest(images=photo_folder, lowest_margins=count, **fields)
    return verify_bundle(bundle, request, progress)


def test_lowest_margins_compares_lowest_margins_first(bundle, photo_folder):
    everything = verify_bundle(bundle, VerifyRequest(images=photo_folder))
    found = SingleLabel().margins(everything.answers.reference)
    lowest = [everything.answers.paths[i] for i in np.argsort(found)[:7]]
    result = mined(bundle, photo_folder, 7)
    assert result.passed
    assert list(result.answers.paths) == lowest
    assert (result.images.count, result.unreadable) == (7, 0)
    mining = result.mining
    assert (mining.compared, mining.ranked) == (7, 45)
    assert mining.ranked_by == "deploy/fp32.onnx on onnxruntime-cpu"
    assert mining.smallest_skipped == pytest.approx(np.sort(found)[7], rel=1e-5)
    assert mining.ranking_error < 1e-4
    assert 0 <= mining.lost["deploy/fp32.onnx on onnxruntime-cpu"] < 1e-4


def test_lowest_margins_claims_no_bound_or_accuracy(bundle, photo_folder):
    result = mined(bundle, photo_folder, 7)
    assert result.verdicts[0].measurement.flip_rate_bound is None
    assert result.expected
    assert result.accuracy == ()


def test_lowest_margins_passed_changes_no_proof(bundle, photo_folder, named):
    before = contents(bundle)
    assert mined(bundle, photo_folder, 45, reference=named).passed
    assert contents(bundle) == before
    update_manifest(bundle.folder, lambda m: msgspec.structs.replace(m, verdicts=()))
    assert mined(open_bundle(bundle.folder), photo_folder, 45, reference=named).passed
    assert open_bundle(bundle.folder).manifest.verdicts == ()


def test_lowest_margins_finds_a_flip_and_removes_the_proof(bundle, photo_folder, monkeypatch):
    """The candidate is wrong where it was close."""

    def answer(images, logits):
        close = SingleLabel().margins(logits) < limit
        return np.where(close[:, None], -logits, logits)

    everything = verify_bundle(bundle, VerifyRequest(images=photo_folder))
    limit = np.sort(SingleLabel().margins(everything.answers.reference))[3] * 1.0001
    put_candidate(monkeypatch, answer)
    events = []
    result = mined(bundle, photo_folder, 10, events.append)
    assert not result.passed
    assert result.verdicts[0].measurement.flips == 4
    assert "4 of 10 images changed their class" in result.verdicts[0].reasons[0]
    assert result.verdicts[0].failed
    failed = kept(open_bundle(bundle.folder), "deploy/fp32.onnx", "onnxruntime-cpu", "CPU")
    assert (failed.passed, failed.images.count, failed.among) == (False, 10, 45)
    first, *_ = (event for event in events if isinstance(event, Step) and event.done == 1)
    assert first.detail == "comparing, 1 changed their class"


def test_lowest_margins_allows_flips_if_others_hold(bundle, photo_folder, monkeypatch):
    """Every compared decision changes, by little: of all ranked photos that would be allowed."""
    from deploykit.parity.tolerance import Tolerance
    from deploykit.proof import verdict as verdicts

    monkeypatch.setattr(verdicts, "tolerance_for", lambda *_: Tolerance(max_flip_rate=0.5))
    everything = verify_bundle(bundle, VerifyRequest(images=photo_folder))
    found = np.sort(SingleLabel().margins(everything.answers.reference))

    def swap_of(close):
        def answer(images, logits):
            ranked = np.argsort(-logits, axis=1)[:, :2]
            changed = logits.copy()
            np.put_along_axis(changed, ranked[:, :1], logits.min() - close, axis=1)
            return changed

        return answer

    put_candidate(monkeypatch, swap_of(close=10 * found[-1]))
    before = open_bundle(bundle.folder).manifest
    result = mined(bundle, photo_folder, 5)
    measured = result.verdicts[0].measurement
    assert (measured.flips, result.mining.ranked) == (5, 45)
    assert not result.mining.others_hold("deploy/fp32.onnx on onnxruntime-cpu")
    verdict = result.verdicts[0]
    assert verdict.reasons == ("5 of 5 images changed their class; at most 50% may",)
    assert not verdict.passed
    # Of all 45 they are few enough: so they do not speak against the proof that all of them gave.
    assert not verdict.failed
    assert "Compare all photos, without --lowest-margins." in " ".join(result.mining.sentences)
    assert open_bundle(bundle.folder).manifest == before


def test_lowest_margins_names_the_ranking_graph(bundle, photo_folder):
    events = []
    mined(bundle, photo_folder, 7, events.append)
    notes = [event.message for event in events if isinstance(event, Note)]
    assert "ranking 45 photos by the margins of deploy/fp32.onnx on onnxruntime-cpu" in notes
    steps = [event for event in events if isinstance(event, Step) and event.stage == "ranking"]
    assert (steps[-1].done, steps[-1].total) == (45, 45)


def test_lowest_margins_beyond_the_images_compares_all(bundle, photo_folder):
    result = mined(bundle, photo_folder, 1000)
    assert result.images.count == 45
    assert result.mining.smallest_skipped is None
    assert result.verdicts[0].measurement.flip_rate_bound is None


def test_lowest_margins_counts_unreadable_images(bundle, photo_folder, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    for name in ("blue/00.png", "red/14.png"):
        (folder / name).write_bytes(b"")
    result = mined(bundle, folder, 5)
    assert (result.images.count, result.unreadable, result.mining.ranked) == (5, 2, 43)
    assert not {"blue/00.png", "red/14.png"} & set(result.answers.paths)


@pytest.mark.parametrize(("torn", "passes"), [(45, True), (46, False)])
def test_lowest_margins_with_mostly_unreadable_images(bundle, photo_folder, tmp_path, torn, passes):
    """However few of those that can be read are compared."""
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    for i in range(torn):
        (folder / "blue" / f"torn {i}.png").write_bytes(b"")
    before = open_bundle(bundle.folder).manifest
    result = mined(bundle, folder, 5)
    assert (result.images.count, result.unreadable) == (5, torn)
    assert result.passed is passes
    if not passes:
        assert "46 of 91 photos cannot be read" in result.verdicts[0].reasons[0]
    assert open_bundle(bundle.folder).manifest == before


def test_lowest_margins_without_readable_image_is_refused(bundle, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    with pytest.raises(ImagesError, match="Not one image"):
        mined(bundle, tmp_path / "photos", 5)


def test_lowest_margins_of_undecidable_images_keeps_the_proof(
    bundle, photo_folder, monkeypatch, tmp_path, no_openvino
):
    """Two of 45 photos are ties: too few to speak against the bundle, and all that was compared."""
    from deploykit.runtime._onnxruntime import OnnxRuntimeSession

    run = OnnxRuntimeSession._run

    def tie_the_black_ones(self, images):
        logits = run(self, images)
        logits[images.max(axis=(1, 2, 3)) <= 1] = 0
        return logits

    monkeypatch.setattr(OnnxRuntimeSession, "_run", tie_the_black_ones)
    from PIL import Image

    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    for shade, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (20, 20), (shade, 0, 0)).save(folder / "blue" / name)
    before = open_bundle(bundle.folder).manifest
    result = mined(bundle, folder, 2)
    assert result.answers.paths == ("blue/a.png", "blue/b.png")
    assert not result.passed
    assert "not one of the compared images" in result.verdicts[0].reasons[-1]
    assert open_bundle(bundle.folder).manifest.verdicts == before.verdicts
    assert not mined(bundle, folder, 3).verdicts[0].reasons


def test_lowest_margins_takes_unrankable_images_first(bundle, photo_folder, monkeypatch):
    from deploykit.runtime._onnxruntime import OnnxRuntimeSession

    run = OnnxRuntimeSession._run

    def break_the_reds(self, images):
        logits = run(self, images)
        if self.spec.graph == "deploy/fp32.onnx":
            logits[images[..., 0].mean(axis=(1, 2)) > images[..., 2].mean(axis=(1, 2))] = np.nan
        return logits

    monkeypatch.setattr(OnnxRuntimeSession, "_run", break_the_reds)
    result = mined(bundle, photo_folder, 4)
    assert not result.passed
    assert "NaN" in result.verdicts[0].reasons[0]
    assert result.mining.smallest_skipped == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lowest_margins": 0}, "--lowest-margins 0 compares nothing"),
        ({"lowest_margins": -1}, "--lowest-margins -1 compares nothing"),
        ({"lowest_margins": 5, "max_images": 9}, "it takes no --max-images"),
        ({"lowest_margins": 5, "self_test": True}, "--lowest-margins chooses among all photos"),
    ],
)
def test_lowest_margins_with_contradicting_options(bundle, fields, message):
    with pytest.raises(UsageError, match=message) as caught:
        verify_bundle(bundle, VerifyRequest(**fields))
    assert caught.value.hint


def test_lowest_margins_without_images_folder(bundle):
    update_manifest(bundle.folder, lambda m: msgspec.structs.replace(m, images=None))
    events = []
    with pytest.raises(UsageError, match="no folder of photos to choose from"):
        verify_bundle(open_bundle(bundle.folder), VerifyRequest(lowest_margins=5), events.append)
    assert events == []


def test_lowest_margins_without_runtime_is_refused_before_ranking(bundle, photo_folder, no_gpu):
    from deploykit.errors import DeviceError

    events = []
    with pytest.raises(DeviceError):
        mined(bundle, photo_folder, 5, events.append, runtime="onnxruntime-cuda")
    assert not any("ranking" in str(event) for event in events)


def test_lowest_margins_ranks_duplicates_once(bundle, photo_folder, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    lowest = mined(bundle, photo_folder, 1).answers.paths[0]
    for i in range(5):
        shutil.copy(folder / lowest, folder / "blue" / f"copy_{i}.png")
    result = mined(bundle, folder, 6)
    assert (result.mining.ranked, result.mining.skipped, result.unreadable) == (45, 5, 0)
    assert len({(folder / path).read_bytes() for path in result.answers.paths}) == 6
    assert "5 more were skipped: duplicates" in " ".join(result.mining.sentences)


@pytest.fixture
def made_within(bundle):
    """The bundle whose FP32 graph is called an INT8 graph that was made within a budget."""

    def make(budget):
        (bundle.folder / INT8).write_bytes((bundle.folder / "deploy/fp32.onnx").read_bytes())
        manifest = bundle.manifest
        search = SearchRecord(
            runtime="onnxruntime-cpu", images=(), kept=(), integers=1, weight_bits=8, budget=budget
        )
        return edited(
            bundle,
            deploy={**manifest.deploy, "int8": INT8},
            files={**manifest.files, INT8: manifest.files["deploy/fp32.onnx"]},
            searches={INT8: search},
        )

    return make


def test_lowest_margins_skip_what_its_accuracy_judges(made_within, photo_folder, no_openvino):
    bundle = made_within(Budget(max_accuracy_drop=1))
    events = []
    result = mined(bundle, photo_folder, 5, events.append)
    assert result.passed
    assert INT8 not in {verdict.candidate.graph for verdict in result.verdicts}
    (reason,) = {why for candidate, why in result.skipped.items() if candidate.file == INT8}
    assert reason == (
        "it was made within a budget of the accuracy (--max-accuracy-drop 1), about which the "
        "photos with the lowest margins tell nothing"
    )
    notes = [event.message for event in events if isinstance(event, Note)]
    (note,) = (note for note in notes if note.startswith("skipped: "))
    assert note.startswith(f"skipped: {INT8} ")
    assert note.endswith(f": {reason}")
    flips = Budget(max_flip_rate=0.1)
    assert mined(bundle, photo_folder, 5, precision="int8", budget=flips).passed


def test_lowest_margins_of_accuracy_alone_are_refused(made_within, photo_folder, no_openvino):
    bundle, events = made_within(Budget(max_accuracy_drop=1)), []
    with pytest.raises(UsageError, match="Nothing can be compared: deploy/int8") as caught:
        mined(bundle, photo_folder, 5, events.append, precision="int8")
    assert "without --lowest-margins" in caught.value.hint
    assert not any("ranking" in str(event) for event in events)


def test_lowest_margins_judge_the_flips_of_a_budget(made_within, photo_folder, no_openvino):
    bundle = made_within(Budget(max_flip_rate=0.4, max_accuracy_drop=1))
    (verdict,) = mined(bundle, photo_folder, 5, precision="int8").verdicts
    assert verdict.reasons == ()
    assert verdict.budget == Budget(max_flip_rate=0.4)
