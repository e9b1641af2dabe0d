"""What counts as proven, and that everybody who asks gets the same answer."""

import made_benchmarks
import msgspec
import numpy as np
import pytest
from bundle_files import edited
from fake_session import FakeSession
from fp16_networks import BRIGHT, make_photos

from deploykit.bundle.accepted import Accepted
from deploykit.bundle.folder import open_bundle
from deploykit.bundle.verdicts import ImageSet
from deploykit.commands.bench import run as bench
from deploykit.commands.build.proven_graph import proven_graph
from deploykit.commands.inspect.bundle import inspect_bundle
from deploykit.commands.quantize.request import QuantizeRequest
from deploykit.commands.quantize.run import quantize_bundle
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import ParityError
from deploykit.inference.candidates import Candidate, this_machine
from deploykit.parity.budget import Budget
from deploykit.parity.measurement import AccuracyChange
from deploykit.parity.statistics import upper_bound
from deploykit.parity.tolerance import MAX_FLIP_RATE_BOUND, MIN_IMAGES
from deploykit.proof.auto import open_best
from deploykit.proof.policy import status
from deploykit.proof.text import status_of_run, status_text
from deploykit.runtime.opener import REHEARSAL
from deploykit.system.progress import silent

FP32, INT8 = "deploy/fp32.onnx", "deploy/int8.onnx"
CPU = "onnxruntime-cpu"
BF16 = Candidate(FP32, "openvino", "bf16")


def image_set(kind, images):
    return ImageSet(kind=kind, source="birds" if kind == "photos" else "", count=images, sha256="")


def measured(verdict, kind, images, flips=0):
    """The verdict on so many images of a kind."""
    bound = upper_bound(flips, images) if kind == "photos" else None
    found = msgspec.structs.replace(
        verdict.measurement, images=images, flips=flips, undecidable=0, flip_rate_bound=bound
    )
    return {"images": image_set(kind, images), "measurement": found, "among": images}


def budgeted(flips, budget, **fields):
    """An INT8 verdict on 225 photos within a budget of the user's."""
    return {"kind": "executed", "budget": budget, "_of": ("photos", 225, flips), "_found": fields}


WRONG = AccuracyChange(name="accuracy", images=225, correct=200, lost=6, won=2)

#: Precision, how the verdict differs from an executed proof without a flip, and the answer.
KINDS = {
    "executed on photos": ("fp32", {}, "proven"),
    "by the graph": ("fp32", {"reference_kind": "graph"}, "proven"),
    "by golden answers": ("fp32", {"reference_kind": "golden"}, "unproven"),
    "on generated images": ("fp32", ("generated", 24), "proven"),
    "on golden images": ("fp32", ("golden", 8), "proven"),
    "on one photo": ("fp32", ("photos", 1), "proven"),
    "rehearsed": ("fp32", {"kind": "rehearsed"}, "unproven"),
    "another device": ("fp32", {"device": "CPU (other)"}, "unproven"),
    "another version": ("fp32", {"versions": {"onnxruntime-gpu": "1.0"}}, "unproven"),
    "unknown version": ("fp32", {"versions": {}}, "unproven"),
    "another file": ("fp32", {"graph_sha256": "0" * 64}, "unproven"),
    "failed": ("fp32", {"reasons": ("2 of 45 images changed their class",)}, "failed"),
    "none": ("fp32", None, "unproven"),
    "edited to flips": ("fp32", ("photos", 225, 3), "unproven"),
    "int8 edited to flips": ("int8", ("photos", 225, 30), "unproven"),
    "int8 on photos": ("int8", ("photos", MIN_IMAGES), "proven"),
    "int8 on too few": ("int8", ("photos", MIN_IMAGES - 1), "unproven"),
    "int8 on generated images": ("int8", ("generated", 225), "unproven"),
    "int8 on golden images": ("int8", ("golden", 225), "unproven"),
    "int8 with flips": ("int8", ("photos", 225, 1), "within budget"),
    "int8 with flips on too few": ("int8", ("photos", 25, 1), "unproven"),
    "int8 within a budget": ("int8", budgeted(30, Budget(max_flip_rate=0.2)), "within budget"),
    "int8 beyond its budget": ("int8", budgeted(30, Budget(max_flip_rate=0.1)), "unproven"),
    "int8 that needs no budget": ("int8", budgeted(0, Budget(max_flip_rate=0.2)), "proven"),
    "int8 with large changes": (
        "int8",
        budgeted(0, Budget(max_flip_rate=0.2), p99_probability_change=0.3),
        "within budget",
    ),
    "int8 within a drop of accuracy": (
        "int8",
        budgeted(30, Budget(max_accuracy_drop=2), accuracy=WRONG),
        "within budget",
    ),
    "int8 beyond a drop of accuracy": (
        "int8",
        budgeted(30, Budget(max_accuracy_drop=1), accuracy=WRONG),
        "unproven",
    ),
    "int8 without the accuracy": ("int8", budgeted(0, Budget(max_accuracy_drop=1)), "unproven"),
    "fp32 within a budget": (
        "fp32",
        {"budget": Budget(max_flip_rate=1), "_of": ("photos", 225, 3), "_found": {}},
        "unproven",
    ),
}


@pytest.fixture
def known(bundle):
    """The bundle whose FP32 graph, or the same called INT8, is known by one verdict alone."""

    def make(kind):
        precision, change, _ = KINDS[kind]
        (proof,) = (each for each in bundle.manifest.verdicts if each.graph == FP32)
        if isinstance(change, tuple):
            change = measured(proof, *change)
        elif change and "_of" in change:
            of = measured(proof, *change["_of"])
            found = msgspec.structs.replace(of["measurement"], **change["_found"])
            fields = {name: each for name, each in change.items() if name[0] != "_"}
            change = of | {"measurement": found} | fields
        if precision == "int8":
            path = bundle.folder / INT8
            path.write_bytes((bundle.folder / FP32).read_bytes())
            manifest = bundle.manifest
            quantized = edited(
                bundle,
                deploy={**manifest.deploy, "int8": INT8},
                files={**manifest.files, INT8: manifest.files[FP32]},
            )
            with open_best(quantized, runtime=CPU, precision="int8") as session:
                device = session.spec.device
            proof = msgspec.structs.replace(proof, precision="int8", graph=INT8, device=device)
        verdicts = () if change is None else (msgspec.structs.replace(proof, **change),)
        canonical = tuple(e for e in bundle.manifest.verdicts if e.graph == "model.onnx")
        return edited(bundle, verdicts=(*canonical, *verdicts))

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_status_is_the_same_everywhere(known, kind, monkeypatch):
    precision, _, word = KINDS[kind]
    bundle, graph = known(kind), FP32 if precision == "fp32" else INT8
    candidate = Candidate(graph, CPU, precision)
    with open_best(bundle, runtime=CPU, precision=precision) as session:
        spec = session.spec
    answer = status(bundle, candidate, spec.device)
    assert answer.word == word
    assert (answer.reason == "") == (word == "proven")
    # predict's summary, its JSON and its page
    assert status_of_run(bundle, spec) == answer
    # bench, of what it has measured
    found = made_benchmarks.measured(candidate, 10.0, spec=spec)
    monkeypatch.setattr(bench, "take_turns", lambda *_: ([found], []))
    monkeypatch.setattr(bench, "list_candidates", lambda *_: ([], []))
    (shown_by_bench,) = bench.bench_bundle(bundle).measured
    assert shown_by_bench.status == answer
    # inspect; it shows a verdict by what it is worth on its own device
    shown = [status for each, status in inspect_bundle(bundle).verdicts if each.graph == graph]
    if kind not in ("another device", "another file"):
        assert [each.word for each in shown] == [word] * len(shown)
    # auto
    if word == "proven":
        with open_best(bundle, precision=precision) as session:
            assert (session.spec.runtime, session.spec.graph) == (CPU, graph)
    else:
        with pytest.raises(ParityError):
            open_best(bundle, precision=precision)


@pytest.mark.parametrize("kind", ["executed on photos", "failed", "none", "another version"])
def test_status_decides_what_engines_are_built_from(known, kind):
    bundle = known(kind)
    if KINDS[kind][2] == "proven":
        _, proof, _ = proven_graph(bundle, QuantizeRequest("fp32"), silent)
        assert proof.graph == FP32
    else:
        with pytest.raises(ParityError, match="not proven"):
            proven_graph(bundle, QuantizeRequest("fp32"), silent)


def test_status_decides_what_few_images_may_replace(known, tmp_path):
    few = make_photos(tmp_path / "few", BRIGHT - 20, count=2)
    request = QuantizeRequest(images=few, runtime=CPU, graphs=(INT8,))
    with pytest.raises(ParityError, match=f"{INT8} stays as it is: it is proven"):
        quantize_bundle(known("int8 on photos"), request)
    assert quantize_bundle(known("int8 on too few"), request).passed


def test_min_photos_satisfies_the_bound():
    assert upper_bound(0, MIN_IMAGES) <= MAX_FLIP_RATE_BOUND < upper_bound(0, MIN_IMAGES - 1)


def test_status_elsewhere_names_the_device(known):
    answer = status(known("another device"), Candidate(FP32, CPU, "fp32"), "CPU")
    assert answer.reason == "it is proven on CPU (other), not on CPU"
    assert answer.command.startswith("deploykit verify --bundle ")
    assert answer.why == f"{answer.reason}; this compares it:\n{answer.command}"


def test_status_of_an_edited_verdict_tells_it(known):
    answer = status(known("edited to flips"), Candidate(FP32, CPU, "fp32"), "CPU")
    assert answer.proof is None
    assert answer.reason == (
        "its verdict contradicts itself: it is kept as passed, but 3 of 225 images changed their "
        "class; at most 0% may"
    )


def test_status_by_another_version_names_both(known):
    reason = status(known("another version"), Candidate(FP32, CPU, "fp32"), "CPU").reason
    assert reason.startswith("it passed with onnxruntime-cpu 1.0, and ")


class Treacherous(FakeSession):
    """Says that it is OpenVINO in BF16, and turns the answers to bright photos around."""

    def __init__(self, graph, *, mended):
        def answer(images):
            logits = graph.run(images)
            bright = (images.max(axis=(1, 2, 3)) > 225) & (not mended)
            return np.where(bright[:, None], -logits, logits).astype(np.float32)

        super().__init__(answer, classes=3, input_size=(16, 16))
        self._spec = msgspec.structs.replace(
            self._spec, runtime="openvino", precision="bf16", graph=FP32, device="CPU (avx512_bf16)"
        )


@pytest.fixture
def verified(bundle, monkeypatch):
    """Compare the treacherous runtime on photos; gives the verdict and what it is worth then."""
    from deploykit.inference.candidates import Candidate, open_candidate

    graph = open_candidate(bundle, Candidate(FP32, CPU, "fp32"))

    def verify(folder, *, mended=False):
        session = Treacherous(graph, mended=mended)
        monkeypatch.setattr("deploykit.commands.verify.run.open_candidate", lambda *a, **k: session)
        request = VerifyRequest(runtime="openvino", precision="bf16", images=folder)
        (verdict,) = verify_bundle(open_bundle(bundle.folder), request).verdicts
        return verdict, status(open_bundle(bundle.folder), BF16)

    return verify


@pytest.fixture
def easy(tmp_path):
    return make_photos(tmp_path / "easy", BRIGHT - 20)


def test_status_failed_is_kept_on_easier_images(verified, easy, tmp_path):
    verdict, known = verified(easy)
    assert (verdict.passed, known.word) == (True, "proven")
    mixed = make_photos(tmp_path / "mixed", BRIGHT - 20)
    bright = make_photos(tmp_path / "bright", BRIGHT, count=1)
    (bright / "red" / "00.png").rename(mixed / "red" / "bright.png")
    verdict, known = verified(mixed)
    assert (verdict.failed, known.word) == (True, "failed")
    assert f"it failed on 31 photos of {mixed} on " in known.reason
    assert "1 of 31 images changed their class" in known.reason
    verdict, known = verified(easy)
    assert (verdict.passed, known.word) == (True, "failed")
    verdict, known = verified(mixed, mended=True)
    assert (verdict.passed, known.word) == (True, "proven")


def test_status_of_duplicates_is_unproven(verified, easy, tmp_path):
    first = next(easy.rglob("*.png")).read_bytes()
    folder = tmp_path / "duplicates" / "red"
    folder.mkdir(parents=True)
    for i in range(225):
        (folder / f"{i}.png").write_bytes(first)
    verdict, known = verified(folder.parent)
    assert verdict.passed
    assert verdict.measurement.images == 1
    assert known.word == "unproven"
    assert "its proof is on 1 photo" in known.reason


def test_status_within_a_budget_tells_how_to_accept_it(known):
    bundle = known("int8 within a budget")
    answer = status(bundle, Candidate(INT8, CPU, "int8"))
    assert answer.reason == (
        "it changes 30 decisions of 225, within the budget that it was given (at most 20 % of the "
        "decisions may change); --runtime onnxruntime-cpu --precision int8 takes it"
    )
    command = bundle.command("bench", "--accept", "--max-flips", "20%")
    assert answer.why == f"{answer.reason}; this accepts it:\n{command}"
    assert status_text(answer).endswith("; budget: at most 20 % of the decisions may change)")
    assert [answer.is_within(Budget(max_flip_rate=rate)) for rate in (0.13, 0.14)] == [False, True]
    assert not answer.is_within(None)


def test_status_of_a_rehearsal_within_a_budget_is_nothing_to_accept(known):
    bundle = known("int8 within a budget")
    (verdict,) = (each for each in bundle.manifest.verdicts if each.graph == INT8)
    rehearsed = msgspec.structs.replace(verdict, kind="rehearsed", runtime=REHEARSAL)
    answer = status(edited(bundle, verdicts=(rehearsed,)), Candidate(INT8, REHEARSAL, "int8"))
    assert (answer.word, answer.command) == ("within budget", "")


def test_auto_takes_what_was_accepted_within_a_budget(known):
    bundle = known("int8 within a budget")

    def accept(budget):
        accepted = Accepted(
            machine=this_machine(),
            file=INT8,
            sha256=bundle.manifest.files[INT8].sha256,
            runtime=CPU,
            precision="int8",
            status="within budget",
            images_per_second=9.0,
            created="2026-11-22T09:00:00+00:00",
            budget=budget,
        )
        return edited(bundle, accepted=(accepted,))

    for budget in (None, Budget(max_flip_rate=0.13)):
        with pytest.raises(ParityError):
            open_best(accept(budget), precision="int8")
    with open_best(accept(Budget(max_flip_rate=0.14))) as session:
        assert session.spec.precision == "int8"
