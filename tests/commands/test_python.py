"""The Python functions from outside: what they take, return, raise and print."""

import inspect
import multiprocessing
import pickle
import re
import shutil
import subprocess
import sys
import typing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import typer
from PIL import Image

import deploykit
from deploykit.commands.app import app
from deploykit.commands.predict.api import predict
from deploykit.commands.python import TEXTS, in_python
from deploykit.errors import BundleError, DeviceError, InputError, UsageError
from deploykit.system.progress import Note

COMMANDS = {"build_engine": "build-trt"}
FUNCTIONS = [name for name in deploykit.__all__ if name.islower()]
#: Of the command line alone: how it shows, and what it writes to tables. ``diagnose`` is verify's.
COMMAND_LINE = {
    "all": {"json", "verbose", "no_diagnose"},
    "bench": {"forget"},
    "collect": {"strict", "quiet"},
    "predict": {"strict", "quiet"},
    "verify": {"stages", "layers", "transform", "trained_accuracy"},
}


@pytest.fixture(scope="module")
def bundle(exported_bundle):
    return exported_bundle


@pytest.fixture(scope="module")
def model(bundle):
    with deploykit.load(bundle, runtime="onnxruntime-cpu") as model:
        yield model


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)


# The functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ("load", "diagnose")])
def test_arguments_match_command_options(name):
    group, called = typer.main.get_command(app), COMMANDS.get(name, name)
    command = group.get_command(group.make_context("deploykit", [called]), called)
    left_out = COMMAND_LINE["all"] | COMMAND_LINE.get(name, set())
    options = {param.name.replace("arch_arg", "arch_args"): param for param in command.params}
    parameters = dict(inspect.signature(getattr(deploykit, name)).parameters)
    if "no_diagnose" in options:
        assert parameters.pop("diagnose").default is True
    assert parameters.pop("progress").default.__name__ == "silent"
    assert {*parameters} == {*options} - left_out - {"help"}
    documented = re.findall(r"^    (\w+): ", inspect.getdoc(getattr(deploykit, name)), re.M)
    assert {*parameters} <= {*documented}


def test_predict_tells_type_checkers_all_arguments():
    named = {}
    for overload in typing.get_overloads(predict):
        hints = typing.get_type_hints(overload)
        options = typing.get_type_hints(typing.get_args(hints.pop("options"))[0])
        named |= {name: str(hint) for name, hint in {**hints, **options}.items()}
    hints = typing.get_type_hints(predict)
    several = ("return", "output", "shard")  # what tells the overloads apart
    assert named.keys() == hints.keys()
    assert {name: str(hint) for name, hint in hints.items() if name not in several} == {
        name: hint for name, hint in named.items() if name not in several
    }


def test_python_session_from_checkpoint_to_rows(
    tmp_path, monkeypatch, network_file, checkpoint, photo_folder
):
    monkeypatch.chdir(tmp_path)
    made = deploykit.export(
        f"{network_file}:Net",
        str(checkpoint),
        classes=["blue", "green", "red"],
        images=photo_folder,
        input_size=16,
        mean=0.5,
        std=(0.25, 0.25, 0.25),
        arch_args={"width": 8},
    )
    assert made.manifest.labels.names == ("blue", "green", "red")
    assert made.manifest.preprocessing.input_size == (16, 16)
    assert made.manifest.preprocessing.std == (0.25, 0.25, 0.25)
    named = {"arch": f"{network_file}:Net", "ckpt": checkpoint, "arch_args": {"width": 8}}
    found = deploykit.verify(made, images=photo_folder, junit="parity.xml", **named)
    assert found.passed is True
    assert (tmp_path / "parity.xml").is_file()
    assert deploykit.diagnose(made, images=photo_folder, runtime="onnxruntime-cpu", **named).passed
    rows = [*deploykit.predict(photo_folder, runtime="onnxruntime-cpu")]  # the one bundle there is
    assert [row.label for row in rows] == ["blue"] * 15 + ["green"] * 15 + ["red"] * 15
    assert deploykit.inspect("Net").sound
    assert deploykit.inspect(made).manifest.verdicts  # made by verify, after it was opened


def test_verify_of_another_network_prints_failed(bundle, network_file, tmp_path):
    import torch

    from deploykit.models.registry import resolve_architecture

    torch.manual_seed(1)
    other = resolve_architecture(f"{network_file}:Net", allow_user_code=True).build(3)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    found = deploykit.verify(bundle, arch=f"{network_file}:Net", ckpt=tmp_path / "other.pth")
    assert found.passed is False
    assert repr(found).endswith("FAILED")


def test_predict_streams_rows_with_unreadable_ones(bundle, photo_folder, tmp_path):
    (tmp_path / "a.png").write_bytes((photo_folder / "red" / "00.png").read_bytes())
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8 cut off")
    rows = deploykit.predict(tmp_path, bundle=str(bundle.folder))
    assert next(rows).label == "red"
    bad = next(rows)
    assert (bad.path, bad.status, bad.label) == ("b.jpg", "corrupt", None)
    assert repr(bad).startswith("b.jpg: corrupt: It ")


def test_progress_names_the_bundle_and_prints_nothing(bundle, photo_folder, capfd, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_ARTIFACTS", str(bundle.folder.parent))
    events = []
    rows = [*deploykit.predict(photo_folder / "red" / "00.png", progress=events.append)]
    assert len(rows) == 1
    assert Note(f"using bundle {bundle.folder}") in events
    assert capfd.readouterr() == ("", "")


def test_progress_notes_name_arguments(bundle, tmp_path, capsys):
    for name in ("a", "b"):
        shutil.copytree(bundle.folder, tmp_path / name)
    deploykit.inspect(artifacts=tmp_path, progress=print)
    assert capsys.readouterr().out == (
        f"using the newest of 2 bundles: {tmp_path / 'b'} (bundle chooses)\n"
    )


def test_load_imports_no_training_code(bundle):
    code = (
        "import sys, deploykit; assert 'numpy' not in sys.modules\n"
        f"deploykit.load({str(bundle.folder)!r}, runtime='onnxruntime-cpu')\n"
        "print(sorted({'torch', 'onnx', 'rich', 'typer', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# A model ------------------------------------------------------------------------------------------


def test_model_answers_as_predict(model, bundle, photo_folder):
    rows = deploykit.predict(photo_folder, bundle=bundle, runtime="onnxruntime-cpu")
    for row in [*rows][::9]:
        answer = model(photo_folder / row.path)
        assert (answer.label, answer.margin) == (row.label, pytest.approx(row.margin, abs=1e-5))
        assert len(answer.top) == 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "I;16"])
def test_model_answers_images_and_files_alike(model, photo_folder, tmp_path, mode):
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I;16") else "image.png")
    with Image.open(photo_folder / "green" / "03.png") as image:
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
        else:
            image = image.convert(mode)
    image.save(path)
    with Image.open(path) as opened:
        assert model(opened).top == model(str(path)).top == model(path.read_bytes()).top
    assert model(image).margin == model(path).margin


def test_model_ignores_exif_rotation(model, tmp_path):
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:20, :, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        answers = model.predict([tmp_path / "turned.png", image, pixels])
    assert len({answer.margin for answer in answers}) == 1


def test_model_predict_of_mixed_inputs(model, photo_folder, tmp_path):
    paths = [photo_folder / name / "01.png" for name in ("blue", "green", "red")]
    array = np.asarray(Image.open(paths[1]).convert("RGB"))
    images = [str(paths[0]), array, Image.open(paths[2]), tmp_path / "gone.png", paths[0]] * 5
    rows = model.predict(images)
    assert [row.label for row in rows] == ["blue", "green", "red", None, "blue"] * 5
    assert (rows[3].status, rows[1].path, rows[0].path) == ("vanished", "image 1", str(paths[0]))
    assert model.predict([]) == []


def test_model_logits_of_a_batch(model, batch):
    logits = model.logits(batch)
    assert (logits.shape, logits.dtype) == ((24, 3), np.float32)
    for i in (0, 7, 23):
        np.testing.assert_allclose(model.logits(batch[i : i + 1])[0], logits[i], atol=1e-5)
    assert model(batch[0]).margin == pytest.approx(np.diff(np.sort(logits[0]))[-1], abs=1e-5)
    assert model.logits(batch[:0]).shape == (0, 3)
    np.testing.assert_array_equal(model.logits(batch[::-1]), logits[::-1])  # not contiguous


def test_model_in_eight_threads(bundle, batch):
    with deploykit.load(bundle) as model:
        expected = [model.logits(batch[i : i + 1 + i % 5]) for i in range(16)]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                found = pool.map(lambda i: model.logits(batch[i : i + 1 + i % 5]), range(16))
                for ours, theirs in zip(expected, found, strict=True):
                    np.testing.assert_array_equal(ours, theirs)


def test_model_is_pickled_to_processes(bundle, photo_folder):
    paths = [str(photo_folder / name / "02.png") for name in ("blue", "green", "red")]
    with deploykit.load(bundle, precision="fp32", top_k=1) as model:
        runtime = model.spec.runtime
        expected = model.predict(paths)
        copy = pickle.loads(pickle.dumps(model))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            assert [*pool.map(model, paths)] == [model(path) for path in paths]
    assert [row.label for row in expected] == ["blue", "green", "red"]
    with copy:  # which is open though the original is closed
        assert copy.predict(paths) == expected
        assert copy.spec.runtime == runtime
    closed = pickle.loads(pickle.dumps(copy))
    with pytest.raises(UsageError, match="is closed"):
        closed(paths[0])


def test_model_closed_refuses_use(bundle, photo_folder, batch):
    with deploykit.load(bundle) as model:
        pass
    model.close()
    for use in (lambda: model(photo_folder / "red" / "00.png"), lambda: model.logits(batch)):
        with pytest.raises(UsageError, match=r"The model of .*colours is closed"):
            use()
    assert repr(model) == "model    closed"


def test_load_of_a_named_engine_and_pickle(engine_bundle, engines, batch):
    name = engine_bundle.manifest.engines[0].rpartition("/")[2]
    with deploykit.load(engine_bundle, engine=name) as model:
        assert model.spec.runtime == "tensorrt_rtx"
        assert len(model.logits(np.concatenate([batch, batch]))) == 48  # more than it takes at once
        copy = pickle.loads(pickle.dumps(model))
        assert copy.spec.graph == model.spec.graph
    with pytest.raises(UsageError, match="runs on tensorrt_rtx in fp16") as caught:
        deploykit.load(engine_bundle, engine=name, runtime="openvino")
    assert caught.value.hint == "Leave out runtime and precision."


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: deploykit.export("dpn92", 5), "ckpt must be a path (str or Path), not 5."),
        (lambda b: deploykit.export("dpn92", ""), "ckpt is an empty path."),
        (
            lambda b: deploykit.load(5),
            "bundle must be a bundle, its path, its name or None, not 5.",
        ),
        (
            lambda b: deploykit.verify(b, max_images="9"),
            "max_images must be a whole number or None,",
        ),
        (
            lambda b: deploykit.verify(b, max_images=True),
            "max_images must be a whole number or None",
        ),
        (lambda b: deploykit.verify(b, tf32="no"), "tf32 must be True or False, not 'no'."),
        (
            lambda b: deploykit.verify(b, lowest_margins=1, max_images=1),
            "lowest_margins chooses among all photos of a folder: it takes no max_images",
        ),
        (lambda b: deploykit.verify(b, arch_args=["k=2"]), "arch_args must be a dict or None"),
        (lambda b: deploykit.load("a\0b"), "bundle has a null character"),
        (lambda b: deploykit.load(b, runtime="gpu"), "There is no runtime 'gpu'; there are onnx"),
        (lambda b: deploykit.load(b, threads=0), "threads must be at least 1; got 0."),
        (lambda b: deploykit.load(b, top_k=9), "top_k must be 1 to 3, the classes; got 9."),
        (lambda b: deploykit.quantize(b, precision="int4"), "precision must be one of fp16, int8,"),
        (
            lambda b: deploykit.bench(b, batch_sizes=8),
            "batch_sizes must be a list of whole numbers",
        ),
        (lambda b: deploykit.identify(None), "checkpoint must be a path (str or Path), not None."),
        (lambda b: deploykit.inspect(b, progress=5), "progress must be a function, not 5."),
        (
            lambda b: deploykit.export("dpn92", "x", crop_size=(1, 2, 3)),
            "crop_size must be a whole",
        ),
        (
            lambda b: deploykit.export("dpn92", "x", classes=["a,b"]),
            "The class name 'a,b' has a com",
        ),
        (lambda b: deploykit.diagnose(b, stages=False, layers=False), "Neither stages nor layers"),
        (
            lambda b: deploykit.load(b)(5),
            "An image must be a path, bytes, an image of Pillow's or an array",
        ),
        (lambda b: deploykit.load(b)(b.folder), "colours is a folder, not an image."),
        (lambda b: deploykit.load(b).predict("a.jpg"), "images must be a list of images, not str."),
        (
            lambda b: deploykit.load(b).predict(b"JPEG"),
            "must be a list of images, not bytes",
        ),
        (lambda b: deploykit.load(b).logits([1]), "A batch must be a NumPy array, not list."),
    ],
)
def test_mistakes_name_the_argument(bundle, call, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        call(bundle)


def test_load_suggests_a_close_choice(bundle):
    with pytest.raises(UsageError, match="not 'fp61'") as caught:
        deploykit.load(bundle, precision="fp61")
    assert caught.value.hint == "Did you mean 'fp16'?"


def test_verify_of_unknown_keyword():
    with pytest.raises(TypeError, match=r"verify\(\) got an unexpected keyword argument 'image'"):
        deploykit.verify(image="x")


def test_model_refuses_other_arrays(model):
    with pytest.raises(UsageError, match=r"not float32 of shape \(3, 20, 20\)") as caught:
        model(np.zeros((3, 20, 20), np.float32))
    assert "transpose(1, 2, 0)" in caught.value.hint
    with pytest.raises(UsageError, match="image has no pixels: its size is 0x5"):
        model(Image.new("RGB", (0, 5)))
    with pytest.raises(UsageError, match=r"shape \(N, 16, 16, 3\), not uint8 of shape \(1, 20"):
        model.logits(np.zeros((1, 20, 20, 3), np.uint8))


def test_model_of_an_unreadable_image(model, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"text\.jpg: No image format"):
        model(tmp_path / "text.jpg")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "EPS", "empty", "text"])
def test_model_of_unreadable_bytes_gives_the_reason_of_the_file(model, tmp_path, kind):
    path = tmp_path / "image"
    path.write_text("" if kind == "empty" else "no image")
    if kind in ("PNG", "WEBP", "EPS"):
        Image.effect_noise((30, 30), 50).convert("RGB").save(path, kind)
        path.write_bytes(path.read_bytes()[: None if kind == "EPS" else 200])
    of_file, of_bytes = model.predict([path, path.read_bytes()])
    assert (of_bytes.status, of_bytes.reason) == (of_file.status, of_file.reason)
    assert (of_bytes.path, of_bytes.label) == ("image 1", None)


def test_load_without_bundle_or_device(bundle, tmp_path, no_gpu):
    with pytest.raises(BundleError, match="There is no bundle in") as caught:
        deploykit.load(artifacts=tmp_path)
    assert "with bundle or artifacts, or make one: deploykit.export(arch=NAME, ckpt=FILE)" in str(
        caught.value
    )
    with pytest.raises(DeviceError, match=r"Without runtime, deploy/fp32\.onnx on onnx"):
        deploykit.load(bundle, runtime="tensorrt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--max-images 5", "max_images=5"),
        ("Replace it with --overwrite, or choose another --name.",
         "Replace it with overwrite=True, or choose another name."),
        ("Name one: --images DIR", "Name one: images=DIR"),
        ("(--resize HxW)", "(resize=HxW)"),
        ("Leave --input-size out, or", "Leave input_size out, or"),
        ("--images takes yours", "images takes yours"),
        ("Name it: --runtime openvino --tf32", "Name it: runtime='openvino', tf32=True"),
        ("Export it again with --embeddings, which", "Export it again with embeddings=True, which"),
        ("Name it: --embeddings e.npy", "Name it: embeddings='e.npy'"),
        ("run deploykit verify --runtime openvino --precision bf16; or",
         "run deploykit.verify(runtime='openvino', precision='bf16'); or"),
        ("deploykit bench --bundle 'a b' --images /x/y --accept lets predict",
         "deploykit.bench(bundle='a b', images='/x/y', accept=True) lets predict"),
        ("deploykit verify --layers shows where", "deploykit.diagnose(layers=True) shows where"),
        ("deploykit build-trt --flavour auto", "deploykit.build_engine(flavour='auto')"),
        ("interpolation  78 of 80  --interpolation bicubic",
         "interpolation  78 of 80  interpolation='bicubic'"),
        ("--arch-arg k=2, or --arch-arg b=6,12", "arch_args={'k': 2}, or arch_args={'b': (6, 12)}"),
        ("--batch-sizes 1,8,32", "batch_sizes=(1, 8, 32)"),
        ("x: --arch-arg a=1 --arch-arg b=c", "x: arch_args={'a': 1, 'b': 'c'}"),
        ("deploykit build-trt --target sm86 --target sm89 --workspace 2GiB --no-diagnose",
         "deploykit.build_engine(target=['sm86', 'sm89'], workspace=2 * 2**30, diagnose=False)"),
        ("deploykit quantize --precision int8 --for avx2 --max-flips 5%",
         "deploykit.quantize(precision='int8', cpu='avx2', max_flips='5%')"),
        ("`deploykit predict` says", "`deploykit.predict` says"),
        ("pip install --no-deps x; --gpus all", "pip install --no-deps x; --gpus all"),
    ],
)  # fmt: skip
def test_in_python_of_options(text, expected):
    assert in_python(text) == expected
    assert in_python(expected) == expected


# Results ------------------------------------------------------------------------------------------


def test_repr_of_results_is_a_short_table(bundle, model, photo_folder, checkpoint):
    assert re.search(r"^proven +deploy/fp32.onnx on onnxruntime-cpu$", repr(bundle), re.M)
    assert "classes        blue, green, red" in repr(bundle)
    assert re.search(r"^input    16x16: .*\nclasses  3: blue, green, red\nstatus   proven$",
                     repr(model), re.M)  # fmt: skip
    answer = model(photo_folder / "red" / "00.png")
    assert re.fullmatch(r".*00.png: red [\d.]+ %, (blue|green) .* %; margin [\d.]+", repr(answer))
    found = deploykit.verify(bundle, self_test=True)
    assert repr(found).splitlines()[-1] == "PASSED"
    assert "deploy/fp32.onnx | onnxruntime-cpu | fp32" in str(found)
    assert repr(deploykit.inspect(checkpoint)).startswith("checkpoint ")


def test_html_of_results_is_escaped(bundle, photo_folder, tmp_path):
    shown = deploykit.verify(bundle, self_test=True)._repr_html_()
    assert shown.startswith("<table><tr><th>graph</th><th>runtime</th>")
    assert "<td>0 of 8</td>" in shown
    assert shown.endswith("PASSED</pre>")
    name = "<script>&.png"
    (tmp_path / name).write_bytes((photo_folder / "red" / "00.png").read_bytes())
    (row,) = deploykit.predict(tmp_path, bundle=bundle)
    assert "&lt;script&gt;&amp;.png: red" in row._repr_html_()
    assert "<script>" not in row._repr_html_()


def test_html_of_table_like_labels_is_escaped():
    from deploykit.specs.prediction import Prediction

    row = Prediction(path="a | b", status="corrupt", reason="x\n--+--\n1 | <b>")
    assert "<b>" not in row._repr_html_()


@pytest.mark.parametrize("place", TEXTS.values())
def test_texts_name_existing_functions(place):
    module, _, function = place.partition(":")
    imported = __import__(f"deploykit.commands.{module}", fromlist=[function])
    assert callable(getattr(imported, function))


def test_repr_of_a_deleted_bundle(bundle, tmp_path):
    from deploykit.bundle.folder import Bundle

    gone = Bundle(tmp_path / "gone", bundle.manifest)
    assert repr(gone).startswith(f"bundle         {tmp_path / 'gone'}, as it was\n")
