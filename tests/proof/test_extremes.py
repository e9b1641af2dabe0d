"""Black, white, of one colour, saturated: what no photo shows is compared as well."""

import re

import msgspec
import numpy as np
import onnx
import pytest
import torch
from bundle_files import kept
from made_proofs import PROOF
from onnxscript.rewriter.rules import common as rules

from deploykit.bundle.folder import open_bundle
from deploykit.commands.app import run
from deploykit.commands.verify.conclusion import conclusion_of
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import ParityError
from deploykit.graph import simplify
from deploykit.models.registry import resolve_architecture
from deploykit.proof.auto import open_best
from deploykit.proof.extremes import answer_extremes, judge_extremes
from deploykit.proof.reference import ReferenceRequest
from deploykit.proof.verdict import judge
from deploykit.runtime._onnxruntime import OnnxRuntimeSession
from deploykit.specs.session import SessionSpec
from deploykit.system.progress import Note

NETWORKS = """
import torch
from torch import nn


class Peak(nn.Module):
    \"\"\"Divides an image by its brightest value: a black one by the epsilon alone.\"\"\"

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head((x / (x.amax((1, 2, 3), keepdim=True) + 1e-8)).mean((2, 3)))


class Bare(Peak):
    \"\"\"The same without an epsilon.\"\"\"

    def forward(self, x):
        return self.head((x / x.amax((1, 2, 3), keepdim=True)).mean((2, 3)))


class Spread(Peak):
    \"\"\"Divides by the spread of a channel, which in an image of one colour is rounding.\"\"\"

    def forward(self, x):
        x = x * 0.3 + 0.1
        x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-8)
        return self.head(x.abs().mean((2, 3)))


class Instance(Peak):
    \"\"\"Normalises each image first.\"\"\"

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.InstanceNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(self.norm(x))).mean((2, 3)))
"""


class MadeSession:
    """Answers by the colours of an image, and by ``change`` where it says otherwise.

    Args:
        change: From (N, 8, 8, 3) uint8 and (N, 3) logits to other logits.
        precision: Of the candidate.
    """

    def __init__(self, change=None, *, precision="fp32"):
        self.spec = SessionSpec(
            runtime="made",
            graph="made.onnx",
            precision=precision,
            device="CPU",
            input_size=(8, 8),
            classes=3,
            largest_batch=2,
        )
        self._change = change

    def run(self, images):
        assert len(images) <= self.spec.largest_batch
        logits = images.mean((1, 2)).astype(np.float32)
        return logits if self._change is None else self._change(images, logits)

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def reasons(*candidates, reference=None, scale=100.0):
    notes = []
    measurement = msgspec.structs.replace(PROOF.measurement, scale=scale)
    verdicts = [judge(each.spec, measurement) for each in candidates]
    right = answer_extremes(reference or MadeSession(), notes.append)
    found = judge_extremes(verdicts, candidates, right)
    assert all(each.failed is bool(each.extremes) for each in found)
    assert all(each.passed is not each.failed for each in found)
    return tuple(each.extremes for each in found), [
        note.message for note in notes if isinstance(note, Note)
    ]


def at(shown, value):
    """Give another value where an image shows something."""

    def change(images, logits):
        logits[shown(images.astype(int))] = value
        return logits

    return change


def is_black(images):
    return images.max((1, 2, 3)) == 0


def is_of_one_colour(images):
    return np.ptp(images, (1, 2)).max(1) == 0


def is_noise(images):
    return ~is_of_one_colour(images)


def test_extreme_reasons_equal_answers():
    assert reasons(MadeSession(), MadeSession(precision="fp16")) == (((), ()), [])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_extreme_reasons_nan_or_infinity(value):
    (found, fine), _ = reasons(MadeSession(at(is_black, value)), MadeSession())
    assert found == ("NaN or infinity on black images, where the reference gives numbers",)
    assert fine == ()


def test_extreme_reasons_another_number_on_noise():
    ((sentence,),), _ = reasons(MadeSession(at(is_noise, 7.0)))
    assert re.fullmatch(
        r"a logit is off by 1\.\de\+02 on saturated noise; 1\.\de-02 is allowed", sentence
    )


def test_extreme_reasons_another_number_on_one_colour_passes():
    """There a network that normalises each image divides rounding by rounding."""
    assert reasons(MadeSession(at(is_of_one_colour, 7e4))) == (((),), [])


def test_extreme_reasons_relative_to_scale():
    near = MadeSession(lambda images, logits: logits + 0.02)
    assert reasons(near)[0] != ((),)
    assert reasons(near, scale=1000.0) == (((),), [])


def test_extreme_reasons_beside_a_loud_image():
    loud = MadeSession(at(is_of_one_colour, 1e9))
    (found,), _ = reasons(MadeSession(at(is_noise, 7.0)), reference=loud)
    assert found


def test_extreme_reasons_rounding_passes():
    near = MadeSession(lambda images, logits: logits * (1 + 1e-6))
    assert reasons(near) == (((),), [])


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_extreme_reasons_below_fp32_asks_for_numbers(precision):
    overflowing = MadeSession(at(is_black, np.inf), precision=precision)
    other = MadeSession(at(is_noise, 7.0), precision=precision)
    (found, fine), _ = reasons(overflowing, other)
    assert found == ("NaN or infinity on black images, where the reference gives numbers",)
    assert fine == ()


def test_extreme_reasons_if_reference_is_not_finite():
    reference = MadeSession(at(is_black, np.nan))
    found, notes = reasons(MadeSession(at(is_black, np.nan)), reference=reference)
    assert found == ((),)
    assert notes == ["made.onnx on made itself gives NaN or infinity on black images"]


@pytest.fixture
def export(tmp_path, photo_folder, monkeypatch):
    """Export one of the networks above with random weights; gives the exit code and the bundle."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks.py").write_text(NETWORKS, encoding="utf-8")
    torch.manual_seed(0)

    def call(name):
        module = resolve_architecture(f"networks.py:{name}", allow_user_code=True).build(3)
        torch.save(module.state_dict(), "net.pth")
        words = f"export --arch networks.py:{name} --ckpt net.pth --classes {photo_folder}"
        code = run([*words.split(), *["--input-size", "8x8", "--mean", "0,0,0", "--std", "1,1,1"]])
        return code, tmp_path / "artifacts" / name

    return call


def test_export_keeps_an_epsilon(export):
    code, folder = export("Peak")
    assert code == 0
    for name in ("model.onnx", "deploy/fp32.onnx"):
        graph = onnx.load(folder / name).graph
        constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
        added = [constants[i] for node in graph.node for i in node.input if i in constants]
        assert any(value.shape == () and value == np.float32(1e-8) for value in added)


def test_export_refuses_a_graph_that_fails_on_extremes(export, monkeypatch, capsys):
    """An epsilon that is lost shows on a black image, and on no photo."""
    monkeypatch.setitem(simplify._RULES_BY_OPERATOR, "Add", (rules.add_0_rule,))
    code, folder = export("Peak")
    assert code == 3
    assert not folder.exists()
    error = capsys.readouterr().err
    for name in ("model.onnx", "deploy/fp32.onnx"):
        assert f"{name}: NaN or infinity on black images, where the reference gives" in error
    assert "is node_div" in error
    assert re.search(r"in the reference it comes from \w+ \(div\w*\), \w+ \(add\w*\)", error)


def test_export_notes_a_reference_that_fails_on_extremes(export, capsys):
    code, _ = export("Bare")
    assert code == 0
    said = "checkpoint on torch itself gives NaN or infinity on black images"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Spread", "Instance"])
def test_export_allows_rounding_on_extremes(export, name):
    assert export(name)[0] == 0


@pytest.fixture
def nan_on_black(monkeypatch):
    """The deploy graph gives NaN on a black image, as one of an older deploykit may."""
    compute = OnnxRuntimeSession._run

    def dark(self, images):
        logits = compute(self, images)
        if self.spec.graph == "deploy/fp32.onnx":
            logits[images.max((1, 2, 3)) == 0] = np.nan
        return logits

    monkeypatch.setattr(OnnxRuntimeSession, "_run", dark)


@pytest.mark.usefixtures("nan_on_black", "no_openvino")
def test_verify_checks_extremes_of_every_candidate(bundle, network_file, photo_folder):
    named = ReferenceRequest(arch=f"{network_file}:Net")
    result = verify_bundle(bundle, VerifyRequest(images=photo_folder, reference=named))
    canonical, deploy = result.verdicts
    assert canonical.passed
    assert deploy.reasons == ("NaN or infinity on black images, where the reference gives numbers",)
    assert deploy.measurement.non_finite == 0  # no photo is black
    conclusion = conclusion_of(result)
    assert conclusion.outcome == "failed"
    assert any("NaN or infinity on black images" in each for each in conclusion.reasons)


@pytest.mark.usefixtures("nan_on_black", "no_openvino")
def test_verify_failed_on_extremes_removes_the_proof(bundle, network_file, photo_folder):
    file = "deploy/fp32.onnx"
    assert kept(bundle, file, "onnxruntime-cpu", "CPU") is not None
    named = ReferenceRequest(arch=f"{network_file}:Net")
    verify_bundle(bundle, VerifyRequest(images=photo_folder, reference=named))
    now = open_bundle(bundle.folder)
    failed = kept(now, file, "onnxruntime-cpu", "CPU")
    assert not failed.passed
    assert any("NaN or infinity" in reason for reason in failed.reasons)
    assert kept(now, "model.onnx", "onnxruntime-cpu", "CPU") is not None
    with pytest.raises(ParityError, match="No graph of bundle colours is proven"):
        open_best(now)


def test_extreme_answers_show_what_no_photo_does():
    session = MadeSession()
    passed = judge(session.spec, msgspec.structs.replace(PROOF.measurement, scale=100.0))
    photos, logits = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 3), np.float32)
    some = answer_extremes(session, lambda event: None)
    images, answers = some.showing(passed, photos, logits)
    assert len(images) == len(answers) == len(some.images)
    none = answer_extremes(
        MadeSession(lambda images, logits: np.full_like(logits, np.nan)), lambda event: None
    )
    assert none.showing(passed, photos, logits)[0] is photos
