"""Inspect: bundles, graphs, engines and checkpoints, sound and not."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import msgspec
import pytest
import torch
from bundle_files import contents, edited
from fp16_networks import tune_fp16

from deploykit.bundle.accepted import Accepted
from deploykit.commands.inspect.run import inspect
from deploykit.commands.inspect.text import inspection_text, inspection_value
from deploykit.commands.quantize.request import QuantizeRequest
from deploykit.commands.quantize.run import quantize_bundle
from deploykit.errors import BundleError, CheckpointError, GraphError, InputError, UsageError
from deploykit.inference.candidates import this_machine
from deploykit.specs.session import SessionSpec
from deploykit.system.progress import Note


@pytest.fixture
def look(tmp_path):
    """Inspect something, and see that both reports can be made of it."""

    def look(what):
        found = inspect(what, artifacts=tmp_path / "artifacts")
        text = inspection_text(found)
        assert json.loads(json.dumps(inspection_value(found), allow_nan=False))["sound"] in (0, 1)
        return found, text

    return look


def test_inspect_bundle(bundle, look, no_gpu):
    before = contents(bundle)
    found, text = look(bundle.folder)
    assert found.sound
    assert found.files == dict.fromkeys(bundle.manifest.files, "ok")
    assert found.runs == "deploy/fp32.onnx on onnxruntime-cpu (CPU)"
    for told in (
        f"{bundle.manifest.architecture.name}, ",
        "blue, green, red",
        "resize 16x16 (stretch), bilinear",
        "deploy/fp32.onnx on onnxruntime-cpu: executed on CPU, ",
        "against the checkpoint's module",
    ):
        assert told in text
    assert contents(bundle) == before


def test_inspect_without_name_takes_newest_bundle(tmp_path, exported_bundle):
    notes = []
    shutil.copytree(exported_bundle.folder, tmp_path / "colours")
    found = inspect(artifacts=tmp_path, progress=notes.append)
    assert found.manifest.name == "colours"
    assert notes == [Note(f"using bundle {tmp_path / 'colours'}")]


def test_inspect_bundle_by_manifest(bundle, look):
    found, _ = look(bundle.folder / "bundle.json")
    assert found.manifest == bundle.manifest


def test_inspect_changed_and_missing_files(bundle, look):
    (bundle.folder / "model.onnx").unlink()
    graph = bundle.folder / "deploy/fp32.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    found, text = look(bundle.folder)
    assert not found.sound
    assert found.files == {
        "model.onnx": "missing",
        "deploy/fp32.onnx": "changed",
        "golden.npz": "ok",
    }
    assert "deploy/fp32.onnx, " in text
    assert "CHANGED" in text
    words = {kept.graph: status.word for kept, status in found.verdicts}
    assert words["deploy/fp32.onnx"] == "unproven"
    assert found.runs == ""
    assert "is not the file that was exported" in found.reasons[0]


def test_inspect_verdict_by_another_version(bundle, look):
    (first, *others) = bundle.manifest.verdicts
    outdated = msgspec.structs.replace(first, versions={"onnxruntime": "0.1"})
    edited(bundle, verdicts=(outdated, *others))
    found, text = look(bundle.folder)
    assert [status.word for _, status in found.verdicts] == ["unproven"] + ["proven"] * len(others)
    assert "it passed with onnxruntime-cpu 0.1, and " in text


def test_inspect_accepted_choice(bundle, look, no_gpu):
    machine = msgspec.structs.replace(this_machine(), cpu="Other CPU", cpus=64, gpu="Other GPU")
    accepted = Accepted(
        machine=machine,
        file="deploy/fp32.onnx",
        sha256=bundle.manifest.files["deploy/fp32.onnx"].sha256,
        runtime="openvino",
        precision="bf16",
        status="proven",
        images_per_second=48.12,
        created="2026-11-22T09:00:00+00:00",
    )
    _, text = look(edited(bundle, accepted=(accepted,)).folder)
    assert (
        "accepted       deploy/fp32.onnx in bf16 on openvino, proven, 48.1 images/s on Other "
        "CPU, 64 threads, Other GPU; 2026-11-22"
    ) in text


def test_inspect_bf16_verdict_of_fp32_graph(bundle, look):
    (first, *_) = bundle.manifest.verdicts
    graph = "deploy/fp32.onnx"
    of_graph = {"graph": graph, "graph_sha256": bundle.manifest.files[graph].sha256}
    of_runtime = {"runtime": "openvino", "device": "CPU (avx512_bf16)"}
    proof = msgspec.structs.replace(first, precision="bf16", **of_graph, **of_runtime)
    edited(bundle, verdicts=(proof,))
    _, text = look(bundle.folder)
    assert "deploy/fp32.onnx in bf16 on openvino: executed on CPU (avx5" in text


def test_inspect_runs_names_the_precision(bundle, monkeypatch):
    spec = SessionSpec(
        runtime="openvino",
        graph="deploy/fp32.onnx",
        precision="bf16",
        device="CPU (avx512_bf16)",
        input_size=(16, 16),
        classes=3,
    )
    session = contextlib.nullcontext(SimpleNamespace(spec=spec))
    monkeypatch.setattr("deploykit.commands.inspect.bundle.open_best", lambda *_, **__: session)
    found = inspect(bundle)
    assert found.runs == "deploy/fp32.onnx in bf16 on openvino (CPU (avx512_bf16))"


def test_inspect_bundle_without_proof(bundle, look):
    edited(bundle, verdicts=())
    found, text = look(bundle.folder)
    assert "nothing was compared; this does:\ndeploykit verify --bundle " in text
    assert "nothing would run here" in text
    assert any("deploykit verify" in reason for reason in found.reasons)


def test_inspect_bundle_commands_stand_alone(bundle, look):
    rehearsed = (
        msgspec.structs.replace(each, kind="rehearsed") for each in bundle.manifest.verdicts
    )
    edited(bundle, verdicts=tuple(rehearsed))
    _, text = look(bundle.folder)
    told = [line for line in text.splitlines() if "deploykit verify" in line]
    assert told
    assert all(line.strip().startswith("deploykit verify --bundle ") for line in told)


def test_inspect_damaged_manifest(bundle, look):
    (bundle.folder / "bundle.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match="is damaged"):
        look(bundle.folder)


def test_inspect_folder_without_bundle(tmp_path, monkeypatch, look):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"The folder empty is not a bundle") as caught:
        look("empty")
    assert "Name a bundle's folder" in caught.value.hint


def test_inspect_folder_of_bundles(tmp_path, monkeypatch, exported_bundle, look):
    monkeypatch.chdir(tmp_path)
    for name in ("colours", "birds"):
        shutil.copytree(exported_bundle.folder, tmp_path / "artifacts" / name)
    with pytest.raises(InputError, match=r"The folder artifacts is not a bundle") as caught:
        look("artifacts")
    assert "There are bundles in it: birds, colours." in caught.value.hint


def test_inspect_missing_path(look):
    with pytest.raises(InputError, match=r"no file or folder dpn29\.pth"):
        look("dpn29.pth")


def test_inspect_graph(bundle, look):
    found, text = look(bundle.folder / "deploy/fp32.onnx")
    (images,), (logits,) = found.inputs, found.outputs
    assert (images.name, images.dtype, images.shape) == ("images", "uint8", ("N", 16, 16, 3))
    assert (logits.name, logits.dtype, logits.shape) == ("logits", "float32", ("N", 3))
    assert found.operators["Conv"] == 2
    assert found.precision == "fp32"
    assert found.labels == ("blue", "green", "red")
    assert found.preprocessing == bundle.manifest.preprocessing
    assert f"opset {bundle.manifest.opset}" in text


def test_inspect_fp16_graph_names_fp32_nodes(toy, look):
    bundle = tune_fp16(toy("Overflow")).bundle
    found, _ = look(bundle.folder / "deploy/fp16.onnx")
    assert found.precision == "fp16"
    kept = {node.node for node in bundle.manifest.kept_in("deploy/fp16.onnx")}
    assert kept
    assert kept <= {node.node for node in found.kept}
    _, text = look(bundle.folder)
    assert f"{len(kept)} nodes of deploy/fp16.onnx stay in FP32" in text


def test_inspect_int8_graphs_of_a_bundle(toy, look):
    bundle = quantize_bundle(toy("Outliers"), QuantizeRequest(runtime="onnxruntime-cpu")).bundle
    lines = look(bundle.folder)[1].splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines if line.startswith("made for")] == [
        "onnxruntime-cpu: deploy/int8.onnx",
        "TensorRT: deploy/int8-tensorrt.onnx",
    ]
    for graph in ("deploy/int8.onnx", "deploy/int8-tensorrt.onnx"):
        assert f"1 node of {graph} stays in FP32" in "\n".join(lines)


def test_inspect_foreign_graph(tmp_path, look):
    from onnx import TensorProto, helper, save

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    save(helper.make_model(graph, producer_name="me"), tmp_path / "other.onnx")
    found, text = look(tmp_path / "other.onnx")
    assert (found.labels, found.preprocessing, found.weights) == (None, None, {})
    assert "x: float32 [?, 4]" in text
    assert "made by me" in text


def test_inspect_graph_with_damaged_labels(bundle, look):
    import onnx

    path = bundle.folder / "model.onnx"
    model = onnx.load(path)
    for entry in model.metadata_props:
        entry.value = entry.value[:-1]
    onnx.save(model, path)
    found, text = look(path)
    assert not found.sound
    assert "its labels cannot be read" in text
    assert "its preprocessing cannot be read" in text


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08\x07"])
def test_inspect_file_that_is_no_graph(tmp_path, look, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match="is no ONNX graph") as raised:
        look(path)
    assert "Give an ONNX file" in raised.value.hint


def test_inspect_engine(engine_bundle, look):
    (file,) = engine_bundle.manifest.engines
    path = engine_bundle.folder / file
    by_engine, text = look(path)
    by_passport, _ = look(path.with_name(f"{path.name}.json"))
    assert by_engine == by_passport
    assert by_engine.header.flavour == "tensorrt_rtx"
    assert by_engine.header.version == by_engine.passport.version
    assert by_engine.header.targets == by_engine.passport.targets
    assert "batches of 1 to 32" in text
    assert "rehearsed on CPU" in text


def test_inspect_engine_without_passport(engine_bundle, look):
    (file,) = engine_bundle.manifest.engines
    path = engine_bundle.folder / file
    path.with_name(f"{path.name}.json").unlink()
    found, text = look(path)
    assert found.passport is None
    assert found.header.flavour == "tensorrt_rtx"
    assert "The engine has no passport" in text
    assert not found.sound


def test_inspect_damaged_engine(engine_bundle, look):
    (file,) = engine_bundle.manifest.engines
    path = engine_bundle.folder / file
    path.write_bytes(path.read_bytes()[:-1])
    alone, _ = look(path)
    assert "should have" in alone.reasons[0]
    found, text = look(engine_bundle.folder)
    assert not found.sound
    assert "UNUSABLE" in text


def test_inspect_engine_not_copied(engine_bundle, look):
    shutil.rmtree(engine_bundle.folder / "engines")
    found, text = look(engine_bundle.folder)
    assert found.sound
    assert found.engines == ()
    assert "NOT COPIED" in text


def test_inspect_passport_without_engine(engine_bundle, look):
    (file,) = engine_bundle.manifest.engines
    (engine_bundle.folder / file).unlink()
    found, _ = look(engine_bundle.folder)
    assert not found.sound
    assert found.engines[0].reasons == ("it is not there",)


def test_inspect_file_named_like_an_engine(tmp_path, look):
    path = tmp_path / "model.engine"
    path.write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="is no engine that is known here"):
        look(path)


def test_inspect_checkpoint(tmp_path, look, checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    wrapped = {f"module.{name}": tensor.half() for name, tensor in state.items()}
    path = tmp_path / "epoch_7.pth"
    torch.save(
        {
            "model": wrapped,
            "epoch": 7,
            "metrics": {"accuracy": torch.tensor(0.5)},
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        },
        path,
    )
    found, text = look(path)
    assert found.contents.entry == "model"
    assert len(found.contents.tensors) == len(state)
    assert found.contents.parameters == sum(tensor.numel() for tensor in state.values())
    assert found.contents.dtypes == {"float16": len(state)}
    assert (found.contents.classes, found.contents.last_layer) == (3, "head")
    assert found.contents.told == {"epoch": 7, "metrics.accuracy": 0.5}
    assert "prefix 'module.' removed" in text


def test_inspect_non_finite_weights(tmp_path, look):
    path = tmp_path / "diverged.pth"
    torch.save({"fc.weight": torch.full((3, 4), torch.nan), "fc.bias": torch.zeros(3)}, path)
    found, text = look(path)
    assert not found.sound
    assert found.contents.non_finite == ("fc.weight",)
    assert "NaN or infinity in fc.weight" in text


class Code:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_inspect_runs_no_code_of_a_checkpoint(tmp_path, look, capsys):
    path = tmp_path / "code.pth"
    torch.save({"fc.weight": torch.ones(2, 2), "extra": Code()}, path)
    with pytest.raises(CheckpointError, match="loading it would run code"):
        look(path)
    assert "must not run" not in capsys.readouterr().out
    found = inspect(path, trust_pickle=True)
    assert len(found.contents.tensors) == 1
    assert "must not run" in capsys.readouterr().err


def test_inspect_trust_pickle_needs_a_checkpoint(bundle):
    with pytest.raises(UsageError, match="--trust-pickle is for a checkpoint"):
        inspect(bundle, trust_pickle=True)


def test_inspect_checkpoint_facts_skip_other_weights(tmp_path, look):
    weights = {"b1.weight": torch.ones(2), "b1.num_batches_tracked": torch.tensor(0)}
    file = {"model": weights, "ema": weights, "best": {"accuracy": torch.tensor(0.5)}, "epoch": 3}
    torch.save(file, tmp_path / "two.pth")
    found, _ = look(tmp_path / "two.pth")
    assert found.contents.told == {"best.accuracy": 0.5, "epoch": 3}


def test_inspect_unknown_file_lists_all_kinds(tmp_path, look):
    (tmp_path / "classes.txt").write_text("bird\ndog\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        look(tmp_path / "classes.txt")
    for kind in ("a bundle's name", "an ONNX graph", "an engine", "PyTorch weights"):
        assert kind in caught.value.hint


@pytest.mark.parametrize("name", ["golden.npz", "bundle.json.lock"])
def test_inspect_other_files_are_refused(bundle, look, name):
    (bundle.folder / "bundle.json.lock").write_text("x", encoding="utf-8")
    with pytest.raises(InputError):
        look(bundle.folder / name)
