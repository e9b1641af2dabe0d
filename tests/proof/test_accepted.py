"""What the user accepted from bench: taken where it was measured and still proven, else not."""

import dataclasses

import msgspec
import pytest
from bundle_files import acknowledged, edited

from deploykit.bundle.accepted import Accepted
from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import SearchRecord
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import BundleError, ParityError
from deploykit.inference import candidates
from deploykit.inference.candidates import this_machine
from deploykit.parity.tolerance import Tolerance
from deploykit.proof.accepted import forget_accepted, keep_accepted
from deploykit.proof.auto import open_best
from deploykit.system.cpu import cpu_device, read_cpu
from deploykit.system.progress import Note

FP32 = "deploy/fp32.onnx"
TAKEN = (
    f"taking {FP32} in fp32 on openvino, accepted from bench on 2026-11-22: "
    "proven, 91.5 images/s then"
)

SOME_FLIPS = Tolerance(max_flip_rate=1)


def accepted_of(bundle, **fields):
    facts = {
        "machine": this_machine(),
        "file": FP32,
        "sha256": bundle.manifest.files[FP32].sha256,
        "runtime": "openvino",
        "precision": "fp32",
        "status": "proven",
        "images_per_second": 91.52,
        "created": "2026-11-22T09:00:00+00:00",
    }
    return Accepted(**{**facts, **fields})


def chosen(bundle, **options):
    """The runtime that opens, and what is said meanwhile."""
    events = []
    with open_best(open_bundle(bundle.folder), progress=events.append, **options) as session:
        return session.spec.runtime, [e.message for e in events if isinstance(e, Note)]


@pytest.fixture
def accepted(bundle):
    """A bundle where OpenVINO in FP32 is proven, and was accepted on this machine."""
    assert verify_bundle(bundle, VerifyRequest(runtime="openvino", precision="fp32")).passed
    bundle = open_bundle(bundle.folder)
    keep_accepted(bundle, accepted_of(bundle))
    return open_bundle(bundle.folder)


def test_accepted_is_taken_with_a_note(accepted):
    assert chosen(accepted) == ("openvino", [TAKEN])


def test_accepted_as_proven_is_not_taken_with_flips(accepted, monkeypatch):
    def changed(proof):
        measurement = msgspec.structs.replace(proof.measurement, flips=1)
        return msgspec.structs.replace(proof, measurement=measurement)

    known = accepted.manifest.verdicts
    flips = tuple(changed(each) if each.runtime == "openvino" else each for each in known)
    edited(accepted, verdicts=flips)
    runtime, (note, *_) = chosen(accepted)
    assert runtime == "onnxruntime-cpu"
    assert "its verdict contradicts itself" in note  # FP32 may change no decision
    monkeypatch.setattr("deploykit.proof.policy.tolerance_for", lambda *_: SOME_FLIPS)
    runtime, (note, *_) = chosen(open_bundle(accepted.folder))
    assert runtime == "onnxruntime-cpu"
    assert "it changes 1 decision of " in note
    within = accepted_of(accepted, status="within budget")
    edited(open_bundle(accepted.folder), accepted=(within,))
    assert chosen(accepted)[0] == "openvino"


def test_accepted_overrides_preference(accepted):
    """The rule prefers openvino; the user measured."""
    keep_accepted(accepted, accepted_of(accepted, runtime="onnxruntime-cpu"))
    runtime, (note,) = chosen(accepted)
    assert runtime == "onnxruntime-cpu"
    assert note.startswith(f"taking {FP32} in fp32 on onnxruntime-cpu")


def test_keep_accepted_for_each_machine(accepted):
    elsewhere = msgspec.structs.replace(this_machine(), gpu="NVIDIA GeForce RTX 4070")
    keep_accepted(accepted, accepted_of(accepted, machine=elsewhere))
    keep_accepted(accepted, accepted_of(accepted, runtime="onnxruntime-cpu"))
    kept = open_bundle(accepted.folder).manifest.accepted
    assert [(each.machine.gpu, each.runtime) for each in kept] == [
        ("NVIDIA GeForce RTX 4070", "openvino"),
        (this_machine().gpu, "onnxruntime-cpu"),
    ]


def test_accepted_yields_to_options(accepted):
    assert chosen(accepted, runtime="onnxruntime-cpu") == ("onnxruntime-cpu", [])
    with pytest.raises(ParityError):
        chosen(accepted, precision="bf16")
    assert chosen(accepted, precision="fp32") == ("openvino", [TAKEN])


def test_auto_without_accepted(accepted):
    assert chosen(edited(accepted, accepted=())) == ("openvino", [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpu": "NVIDIA GeForce RTX 4070"}, "the GPU was NVIDIA GeForce RTX 4070, now "),
        ({"cpu": "Other CPU"}, "the CPU was Other CPU ("),
        ({"cpus": 999}, "999 threads could compute, now "),
    ],
)
def test_accepted_on_another_machine(accepted, change, reason):
    elsewhere = msgspec.structs.replace(this_machine(), **change)
    bundle = edited(accepted, accepted=(accepted_of(accepted, machine=elsewhere),))
    _, (note,) = chosen(bundle)
    begin = f"not taken: {FP32} in fp32 on openvino: accepted on another machine: "
    assert note.startswith(begin)
    assert reason in note
    assert note.splitlines()[1:] == ["to choose again:", bundle.command("bench", "--accept")]


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({"openvino": "2025.2.0"}, "openvino was 2025.2.0, now 20"),
        ({"other": "1"}, "other was 1, now not installed"),
    ],
)
def test_accepted_with_other_versions(accepted, versions, reason):
    then = msgspec.structs.replace(this_machine(), versions=versions)
    bundle = edited(accepted, accepted=(accepted_of(accepted, machine=then),))
    _, (note,) = chosen(bundle)
    assert "another machine" not in note
    assert "measured with other versions: " in note
    assert reason in note


def test_keep_accepted_replaces_other_versions(accepted):
    then = msgspec.structs.replace(this_machine(), versions={"openvino": "2025.2.0"})
    bundle = edited(accepted, accepted=(accepted_of(accepted, machine=then),))
    keep_accepted(bundle, accepted_of(bundle))
    (kept,) = open_bundle(bundle.folder).manifest.accepted
    assert kept.machine == this_machine()


def test_accepted_on_several_machines_names_the_nearest(accepted):
    near = msgspec.structs.replace(this_machine(), versions={})
    far = msgspec.structs.replace(this_machine(), cpu="Other CPU", gpu="Other GPU")
    choices = [accepted_of(accepted, machine=machine) for machine in (near, far)]
    _, (note,) = chosen(edited(accepted, accepted=tuple(choices)))
    assert "measured with other versions" in note
    assert "Other CPU" not in note


def test_accepted_in_another_precision_has_no_note(accepted):
    elsewhere = msgspec.structs.replace(this_machine(), cpu="Other CPU")
    other = accepted_of(accepted, machine=elsewhere, precision="bf16")
    assert chosen(edited(accepted, accepted=(other,)), precision="fp32") == ("openvino", [])


def test_accepted_without_its_graph(accepted):
    gone = accepted_of(accepted, precision="int8")
    runtime, notes = chosen(edited(accepted, accepted=(gone,)))
    assert runtime == "openvino"
    assert "the bundle has it no longer, or it is damaged" in notes[0]


def test_forget_accepted_after_an_upgrade(accepted):
    then = msgspec.structs.replace(this_machine(), versions={})
    elsewhere = msgspec.structs.replace(this_machine(), cpu="Other CPU")
    kept = tuple(accepted_of(accepted, machine=machine) for machine in (elsewhere, then))
    bundle = edited(accepted, accepted=kept)
    assert forget_accepted(bundle) == kept[1]
    bundle = open_bundle(bundle.folder)
    assert bundle.manifest.accepted == kept[:1]
    assert forget_accepted(bundle) is None


def test_forget_accepted_of_meanwhile(bundle):
    keep_accepted(bundle, accepted_of(bundle))
    assert bundle.manifest.accepted == ()
    assert forget_accepted(bundle) == accepted_of(bundle)
    assert open_bundle(bundle.folder).manifest.accepted == ()


def test_accepted_with_another_instruction_set(accepted, monkeypatch):
    other = dataclasses.replace(read_cpu(), instruction_sets=("sve",))
    monkeypatch.setattr(candidates, "read_cpu", lambda: other)
    _, (note,) = chosen(accepted)
    assert "(sve)" in note


def test_accepted_with_a_changed_graph(accepted):
    path = accepted.folder / FP32
    # An unknown field at the end, which every reader skips: the graph is the same, its hash is not.
    path.write_bytes(path.read_bytes() + b"\xa2\x06\x01x")
    _, notes = refused(acknowledged(accepted, FP32))
    assert notes == [not_taken(accepted, f"{FP32} is not the one that was measured")]


def test_accepted_without_its_proof(accepted):
    proofs = tuple(p for p in accepted.manifest.verdicts if p.runtime != "openvino")
    assert chosen(edited(accepted, verdicts=proofs)) == (
        "onnxruntime-cpu",
        [
            not_taken(
                accepted,
                "it is not proven; this compares it:\n"
                + accepted.command("verify", "--runtime", "openvino", "--precision", "fp32"),
            )
        ],
    )


def test_accepted_without_its_runtime(accepted, no_openvino):
    runtime, (note,) = chosen(accepted)  # once, though auto would have tried it as well
    assert runtime == "onnxruntime-cpu"
    assert note.startswith(f"not taken: {FP32} in fp32 on openvino: openvino is not installed")


def test_accepted_damaged_leaves_the_others(accepted):
    """Those that run the same graph on another runtime as well, which cannot open either."""
    int8, manifest = "deploy/int8.onnx", accepted.manifest
    (proof,) = (p for p in manifest.verdicts if (p.graph, p.runtime) == (FP32, "onnxruntime-cpu"))
    enough = msgspec.structs.replace(proof.measurement, images=128, flip_rate_bound=0.02)
    proofs = (
        msgspec.structs.replace(
            proof, graph=int8, runtime=runtime, precision="int8", device=cpu_device("int8"),
            measurement=enough,
        )
        for runtime in ("openvino", "onnxruntime-cpu")
    )  # fmt: skip
    bundle = edited(
        accepted,
        deploy={**manifest.deploy, "int8": int8},
        files={**manifest.files, int8: manifest.files[FP32]},
        searches={int8: SearchRecord("openvino", ())},
        verdicts=(*manifest.verdicts, *proofs),
        accepted=(accepted_of(accepted, file=int8, precision="int8", runtime="onnxruntime-cpu"),),
    )
    (bundle.folder / int8).write_bytes(b"damaged")
    runtime, (of_choice, of_other) = chosen(bundle)
    assert runtime == "openvino"
    assert of_choice.startswith(f"not taken: {int8} in int8 on onnxruntime-cpu: ")
    assert of_choice.splitlines()[-1] == bundle.command("bench", "--accept")
    assert of_other.startswith(f"not taken: {int8} on openvino: ")
    for note in (of_choice, of_other):
        assert "is not the file that was exported" in note
    with pytest.raises(BundleError, match="is not the file that was exported"):
        chosen(edited(bundle, accepted=()))


def test_accepted_damaged_without_others_is_an_error(accepted):
    (accepted.folder / FP32).write_bytes(b"damaged")
    events = []
    with pytest.raises(BundleError, match="is not the file that was exported") as caught:
        open_best(accepted, progress=events.append)
    assert caught.value.exit_code == 4
    assert any(e.message.startswith("not taken: ") for e in events)


def test_keep_accepted_refuses_a_graph_exported_again(bundle):
    changed = edited(
        bundle, files={**bundle.manifest.files, FP32: bundle.manifest.files["model.onnx"]}
    )
    assert changed.manifest.files[FP32] != bundle.manifest.files[FP32]
    with pytest.raises(BundleError, match="was changed meanwhile"):
        keep_accepted(bundle, accepted_of(bundle))


def not_taken(bundle, reason):
    again = bundle.command("bench", "--accept")
    return f"not taken: {FP32} in fp32 on openvino: {reason}\nto choose again:\n{again}"


def refused(bundle):
    """As ``chosen``, of a bundle with nothing that could open."""
    events = []
    with pytest.raises(ParityError):
        open_best(open_bundle(bundle.folder), progress=events.append)
    return None, [e.message for e in events if isinstance(e, Note)]
