"""The graph with embeddings: made, proven and recorded at export, and what is refused."""

import json
import shutil

import msgspec
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import deploykit
from deploykit.bundle.embeddings import EMBEDDINGS_GRAPH
from deploykit.bundle.folder import open_bundle
from deploykit.bundle.manifest import MANIFEST_NAME
from deploykit.commands.app import run
from deploykit.commands.export.again import embeddings_options
from deploykit.errors import BundleError, GraphError, InputError, ParityError, UsageError
from deploykit.graph import embeddings as graph_embeddings
from deploykit.models.user_code import user_callable
from deploykit.runtime._onnxruntime import OnnxRuntimeSession

NETWORKS = """
import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, num_classes)

    def features(self, x):
        return self.act(self.norm(self.conv(x)))

    def forward(self, x):
        return self.head(self.drop(self.features(x).mean((2, 3))))


class Sigmoid(Plain):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class Map(Plain):  # as SqueezeNet: a 1x1 Conv on a map, averaged behind it
    def __init__(self, num_classes=3):
        super().__init__()
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, x):
        return self.head(self.features(x)).relu().mean((2, 3))


class OnePlace(Map):  # a 1x1 Conv on a map of one place
    def forward(self, x):
        pooled = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.head(pooled).flatten(1)


class Functional(Plain):  # no nn.Linear takes the tensor
    def forward(self, x):
        pooled = self.features(x).mean((2, 3))
        return nn.functional.linear(pooled * 2, self.head.weight, self.head.bias)


class TwoHeads(Plain):
    def __init__(self, num_classes=3):
        super().__init__()
        self.other = nn.Linear(8, num_classes)

    def forward(self, x):
        features = self.features(x)
        return self.head(features.mean((2, 3))) + self.other(features.amax((2, 3)))


class Wide(Plain):  # ends in a Conv that is as large as its map
    def __init__(self, num_classes=3):
        super().__init__()
        self.head = nn.Conv2d(8, num_classes, 12)

    def forward(self, x):
        return self.head(self.features(x)).flatten(1)


class Zero(nn.Module):
    def forward(self, x):
        return x * 0


class Dead(Plain):  # nothing reaches the last layer
    def __init__(self, num_classes=3):
        super().__init__()
        self.zero = Zero()

    def forward(self, x):
        features = self.features(x).mean((2, 3))
        return self.head(self.zero(features)) + features[:, :3]
"""
SIZE = 28


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "net.py"
    path.write_text(NETWORKS)
    return path


@pytest.fixture(scope="module")
def export(tmp_path_factory, code, photo_folder):
    """Export one of the networks with embeddings, each once; gives the module and the bundle."""
    made = {}

    def call(net, **options):
        key = net, *options.items()
        if key not in made:
            torch.manual_seed(0)
            module = user_callable(f"{code}:{net}")()
            with torch.no_grad():
                module(torch.randn(16, 3, SIZE, SIZE))  # gives BatchNorm something to be folded
                module.norm.bias.copy_(torch.arange(8) / 4)
            module.eval()
            home = tmp_path_factory.mktemp("home")
            torch.save(module.state_dict(), home / "net.pth")
            bundle = deploykit.export(
                f"{code}:{net}",
                home / "net.pth",
                classes=["a", "b", "c"],
                images=photo_folder,
                input_size=SIZE,
                artifacts=home / "artifacts",
                **{"embeddings": True, **options},
            )
            made[key] = module, bundle
        return made[key]

    return call


@pytest.fixture
def plain(export, tmp_path):
    """A copy of the bundle of Plain that a test may change, and the options that verify it."""
    _, bundle = export("Plain")
    shutil.copytree(bundle.folder, tmp_path / "net")
    architecture, checkpoint = bundle.manifest.architecture, bundle.manifest.checkpoint
    return tmp_path / "net", ["--arch", architecture.name, "--ckpt", checkpoint.path]


def batch():
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


def taken(module, inner, images, *, side=0):
    """What a module inside takes (0) or gives (1), flattened; by torch and a hook of its own."""
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    kept = []
    hook = inner.register_forward_hook(lambda _, given, made: kept.append((given[0], made)[side]))
    with torch.no_grad():
        module(((torch.tensor(images) / 255 - mean) / std).permute(0, 3, 1, 2))
    hook.remove()
    return kept[-1].numpy()


def embedded(bundle, images):
    with deploykit.load(bundle, runtime="onnxruntime-cpu") as model:
        return model.embed(images)


@pytest.mark.parametrize("name", ["Plain", "Sigmoid"])
def test_embeddings_are_what_the_last_linear_takes(export, name):
    module, bundle = export(name)
    images, record = batch(), bundle.manifest.embeddings
    wanted = taken(module, module.head, images)
    found = embedded(bundle, images)
    assert (found.shape, found.dtype) == ((5, 8), np.float32)
    assert found == pytest.approx(wanted, abs=1e-5)
    assert (record.tap.module, record.tap.side, record.tap.size) == ("head", "input", 8)
    (kept,) = record.similarities
    assert kept.similarity.smallest >= 0.99999
    assert kept.similarity.images == kept.images.count
    assert kept.runtime == "onnxruntime-cpu"
    proven = {each.graph for each in bundle.manifest.verdicts if each.passed}
    assert proven == {"model.onnx", "deploy/fp32.onnx", EMBEDDINGS_GRAPH}


@pytest.mark.parametrize(("name", "pooled"), [("Map", True), ("OnePlace", False)])
def test_embeddings_before_a_1x1_conv(export, name, pooled):
    module, bundle = export(name)
    images = batch()
    wanted = taken(module, module.head, images).mean((2, 3))
    assert bundle.manifest.embeddings.tap.pooled is pooled
    assert embedded(bundle, images) == pytest.approx(wanted, abs=1e-5)


def test_embeddings_of_a_functional_head_are_compared_with_the_trace(export):
    module, bundle = export("Functional")
    images = batch()
    wanted = 2 * taken(module, module.norm, images, side=1).clip(0).mean((2, 3))
    assert embedded(bundle, images) == pytest.approx(wanted, abs=1e-5)
    assert bundle.manifest.embeddings.similarities[0].similarity.smallest >= 0.99999


def test_tap_of_a_module_is_what_it_gives(export):
    module, bundle = export("OnePlace", tap="act")
    images = batch()
    wanted = taken(module, module.act, images, side=1).mean((2, 3))
    record = bundle.manifest.embeddings
    assert (record.requested, record.tap.side, record.tap.pooled) == ("act", "output", True)
    assert embeddings_options(bundle.manifest) == {"--embeddings": "", "--tap": "act"}
    assert embedded(bundle, images) == pytest.approx(wanted, abs=1e-5)


def test_tap_with_something_folded_into_it_is_not_published(export):
    with pytest.raises(ParityError, match="cosine to torch's embeddings is"):
        export("Plain", tap="conv")  # in the graph it gives what BatchNorm does


@pytest.mark.parametrize(
    ("name", "tap", "words"),
    [
        ("TwoHeads", None, "2 last layers"),
        ("Wide", None, "convolution of 12x12"),
        ("Plain", "drop", "no module, tensor or node 'drop'"),
        ("Plain", "haed", "Did you mean head"),
        ("Plain", "nope", "named_modules(): conv, "),
        ("Plain", "", "tap is empty"),
        ("Plain", " ", "tap is empty"),
        ("Plain", "head", "gives the logits"),
        ("Plain", "logits", "gives the logits"),
    ],
)
def test_tap_that_is_no_embedding_is_refused(export, name, tap, words):
    with pytest.raises(UsageError) as failed:
        export(name, tap=tap)
    assert words in f"{failed.value.message} {failed.value.hint}"


def test_tap_of_one_of_two_heads(export):
    with pytest.raises(UsageError) as failed:
        export("TwoHeads")
    tap = failed.value.hint.split("tap=")[1].split()[0].strip("'")
    module, bundle = export("TwoHeads", tap=tap)
    inner = module.get_submodule(bundle.manifest.embeddings.tap.module)
    images = batch()
    assert embedded(bundle, images) == pytest.approx(taken(module, inner, images), abs=1e-5)


def test_tap_without_embeddings_is_refused(export):
    with pytest.raises(UsageError, match="none were asked for"):
        export("Plain", embeddings=False, tap="conv")


def test_embeddings_of_nothing_but_zeros_are_refused(export):
    with pytest.raises(ParityError, match="all zeros"):
        export("Dead", tap="zero")


def test_embeddings_of_another_tensor_are_not_published(export, monkeypatch):
    right = graph_embeddings.find_tap

    def wrong(canonical, wanted=None):
        return msgspec.structs.replace(right(canonical, "act"), module="norm")

    monkeypatch.setattr(graph_embeddings, "find_tap", wrong)
    with pytest.raises(ParityError, match="nothing was published: the cosine to torch's"):
        export("Plain", name="wrong")


def test_export_without_embeddings_has_none(export):
    _, bundle = export("Plain", embeddings=False)
    assert bundle.manifest.embeddings is None
    assert not (bundle.folder / EMBEDDINGS_GRAPH).exists()
    with pytest.raises(BundleError, match="no graph that gives embeddings") as failed:
        embedded(bundle, batch())
    assert "embeddings=True" in failed.value.hint


def change_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    change(manifest)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def test_embeddings_of_another_size_are_another_graph(plain):
    folder, _ = plain
    change_manifest(folder, lambda manifest: manifest["embeddings"]["tap"].update(size=7))
    with pytest.raises(GraphError, match="not the graph that the manifest describes"):
        embedded(folder, batch())


def test_embeddings_graph_is_no_graph_of_one_output(plain):
    folder, _ = plain

    def exchange(manifest):
        manifest["deploy"]["fp32"] = EMBEDDINGS_GRAPH
        del manifest["embeddings"]

    change_manifest(folder, exchange)
    with pytest.raises(GraphError, match="not the graph that the manifest describes"):
        deploykit.load(folder, runtime="onnxruntime-cpu")


def test_embeddings_graph_that_was_changed_is_not_opened(plain):
    folder, _ = plain
    shutil.copy(folder / "deploy" / "fp32.onnx", folder / EMBEDDINGS_GRAPH)
    with pytest.raises(BundleError, match="not the file that was exported"):
        embedded(folder, batch())


@pytest.mark.parametrize("size", [0, -1, 2**30])
def test_embeddings_of_senseless_size_are_damage(plain, size):
    folder, _ = plain
    change_manifest(folder, lambda manifest: manifest["embeddings"]["tap"].update(size=size))
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(folder)


def test_embeddings_are_told_and_verified(plain, capsys, photo_folder):
    folder, named = plain
    assert run(["inspect", str(folder)]) == 0
    assert f"{EMBEDDINGS_GRAPH}: 8 values, the input of head" in capsys.readouterr().out
    verify = ["verify", "--bundle", str(folder), "--images", str(photo_folder), *named]
    verify += ["--runtime", "onnxruntime-cpu"]
    assert run([*verify, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["result"]["embeddings"]
    assert found["candidate"]["graph"] == EMBEDDINGS_GRAPH
    assert (found["images"], found["passed"]) == (45, True)
    (kept,) = open_bundle(folder).manifest.embeddings.similarities
    assert kept.similarity.images == 45
    assert run(verify) == 0
    assert f"embeddings {EMBEDDINGS_GRAPH} on onnxruntime-cpu: cosine" in capsys.readouterr().out


def test_verify_finds_wrong_embeddings(plain, capsys, photo_folder, monkeypatch):
    folder, named = plain
    right = OnnxRuntimeSession.run_embedded

    def shifted(self, images):
        logits, embeddings = right(self, images)
        return logits, np.roll(embeddings, 1, axis=1)

    monkeypatch.setattr(OnnxRuntimeSession, "run_embedded", shifted)
    verify = ["verify", "--bundle", str(folder), "--images", str(photo_folder), *named]
    assert run([*verify, "--runtime", "onnxruntime-cpu"]) == 3
    assert "the cosine to torch's embeddings is" in capsys.readouterr().out
    (kept,) = open_bundle(folder).manifest.embeddings.similarities
    assert not kept.similarity.passed


@pytest.fixture
def verify_by_graph(plain, photo_folder):
    """``verify`` without the torch module, whose code is nobody's to run unasked."""
    words = ("--images", str(photo_folder), "--runtime", "onnxruntime-cpu")
    return lambda *options: run(["verify", "--bundle", str(plain[0]), *words, *options])


def test_verify_compares_embeddings_with_the_canonical_graph(
    plain, verify_by_graph, capsys, monkeypatch
):
    (exported,) = open_bundle(plain[0]).manifest.embeddings.similarities
    assert verify_by_graph() == 0
    assert (
        f"embeddings {EMBEDDINGS_GRAPH} on onnxruntime-cpu: cosine to model.onnx's at least "
        in capsys.readouterr().out
    )
    record = open_bundle(plain[0]).manifest.embeddings
    assert [each.reference_kind for each in record.similarities] == ["module", "graph"]
    assert record.similarities[0] == exported
    right = OnnxRuntimeSession.run_embedded

    def shifted(self, images):
        logits, embeddings = right(self, images)
        return logits, np.roll(embeddings, 1, axis=1)

    monkeypatch.setattr(OnnxRuntimeSession, "run_embedded", shifted)
    assert verify_by_graph() == 3
    assert "the cosine to model.onnx's embeddings is" in capsys.readouterr().out
    monkeypatch.undo()
    with pytest.raises(ParityError, match=r"the cosine to model\.onnx's embeddings is"):
        embedded(open_bundle(plain[0]), batch())
    assert verify_by_graph() == 0
    assert embedded(open_bundle(plain[0]), batch()).shape == (5, 8)


@pytest.mark.parametrize("exists", [False, True])
def test_verify_of_a_tensor_that_is_not_the_embedding(plain, verify_by_graph, capsys, exists):
    folder, _ = plain
    first = onnx.load(folder / "model.onnx").graph.node[0].output[0]  # of another size
    name = first if exists else "none"
    change_manifest(folder, lambda manifest: manifest["embeddings"]["tap"].update(tensor=name))
    assert verify_by_graph() == 4
    assert f"model.onnx has no tensor {name} of 8 values" in capsys.readouterr().err


def test_verify_says_why_embeddings_are_not_compared(plain, capsys):
    verify = ["verify", "--bundle", str(plain[0]), "--runtime", "onnxruntime-cpu", "--self-test"]
    assert run(verify) == 0
    assert "embeddings are not compared: golden.npz has recorded logits" in capsys.readouterr().err


def test_embeddings_of_files_are_those_of_their_pixels(export, tmp_path):
    _, bundle = export("Plain")
    images = batch()
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    mixed = [tmp_path / "a.png", Image.fromarray(images[1]), images[2]]
    with deploykit.load(bundle, runtime="onnxruntime-cpu") as model:
        assert model.embed(mixed) == pytest.approx(model.embed(images)[:3], abs=1e-6)
        assert model.embed([]).shape == (0, 8)
        with pytest.raises(InputError, match="missing"):
            model.embed([tmp_path / "missing.png"])
        with pytest.raises(UsageError, match="must be a list of images"):
            model.embed(tmp_path / "a.png")
    with pytest.raises(UsageError, match="closed"):
        model.embed(images)
