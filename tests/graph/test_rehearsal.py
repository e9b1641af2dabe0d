import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from deploy_graphs import IMAGES, OVERFLOW, SENSITIVE_SUM, UNDERFLOW, deploy_graph, run
from torch import nn

from deploykit.errors import GraphError
from deploykit.graph.deploy import fuse_preprocessing
from deploykit.graph.export import onnx_from_module
from deploykit.graph.fp16 import convert_to_fp16, guardians
from deploykit.graph.instruments import model_bytes, with_outputs
from deploykit.graph.rehearsal import rehearsal_of, switchable_rehearsal
from deploykit.runtime._base import normalised
from deploykit.specs.preprocessing import Preprocessing

SMALL = Preprocessing(resize=(8, 8))
PHOTOS = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


class Residual(nn.Module):
    """A depthwise block with a residual and two branches, each tensor rounded by a function."""

    def __init__(self):
        super().__init__()
        self.rounded = nn.Identity()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        r = self.rounded
        x = torch.relu(r(self.stem(r(x))))
        y = r(self.pointwise(torch.relu(r(self.depthwise(x)))))
        x = torch.cat([r(x + y), torch.nn.functional.max_pool2d(x, 3, 1, 1)], 1)
        return r(self.head(r(x.mean((2, 3)))))


class Half(nn.Module):
    def forward(self, x):
        return x.half().to(x.dtype)


def half_graph(nodes, keep=(), **options):
    model, _ = convert_to_fp16(keep)(deploy_graph(nodes, **options))
    return model


def through_fp16(values):
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def residual_graph(residual):
    model, _ = fuse_preprocessing(SMALL)(onnx_from_module(residual, SMALL.input_size))
    return model


def test_rehearsal_of_a_residual_network_rounds_as_torch(residual, residual_graph):
    half, _ = convert_to_fp16()(residual_graph)
    exact, rehearsed = (
        run(each, PHOTOS)["logits"] for each in (residual_graph, rehearsal_of(half))
    )
    batch = torch.from_numpy(normalised(PHOTOS, SMALL))
    state = {name: value.half().float() for name, value in residual.state_dict().items()}
    rounding = Residual().eval()
    rounding.load_state_dict(state)
    rounding.rounded = Half()
    with torch.inference_mode():
        simulated = rounding(batch).numpy()
        half_logits = rounding.half()(batch.half()).float().numpy()
    # FP32 sums in another order may round a tensor to the other FP16 neighbour now and then.
    step = np.spacing(np.abs(simulated).astype(np.float16)).astype(np.float32)
    assert (np.abs(rehearsed - simulated) <= step).all()
    assert (rehearsed == simulated).mean() > 0.5
    assert (np.abs(rehearsed - half_logits) <= 4 * step).all()
    assert np.abs(rehearsed - exact).max() > 0


def test_rehearsal_tensors_have_fp16_values():
    rehearsal = rehearsal_of(half_graph(SENSITIVE_SUM))
    names = ["preprocessing/Add/fp16", "x", "high", "back", "positive"]
    found = run(with_outputs(rehearsal, names))
    image = through_fp16(IMAGES.transpose(0, 3, 1, 2) * np.float32(1 / 255))
    x = through_fp16(image * np.float32(3))
    high = through_fp16(x + np.float32(2000))
    expected = [image, x, high, high - 2000, high - 2000]
    for name, values in zip(names, expected, strict=True):
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], values), name
    assert len(np.unique(found["high"])) < 6  # FP16 has steps of 1 or 2 there


def test_rehearsal_overflow_is_infinite():
    rehearsal = rehearsal_of(half_graph(OVERFLOW))
    found = run(with_outputs(rehearsal, ["high", "x"]))
    x = found["x"]
    assert np.isinf(found["high"]).any()
    assert np.array_equal(found["high"], through_fp16(x * np.float32(300)))


def test_rehearsal_keeps_signature_and_names():
    half = half_graph(OVERFLOW, ["gain"])
    before = model_bytes(half)
    rehearsal = rehearsal_of(half)
    onnx.checker.check_model(model_bytes(rehearsal), full_check=True)
    for side in ("inputs", "outputs"):
        (ours,), (theirs,) = getattr(rehearsal.graph, side), getattr(half.graph, side)
        assert (ours.name, ours.dtype, str(ours.shape)) == (
            theirs.name,
            theirs.dtype,
            str(theirs.shape),
        )
    assert {node.name for node in half.graph} <= {node.name for node in rehearsal.graph}
    assert dict(rehearsal.metadata_props) == dict(half.metadata_props)
    assert model_bytes(half) == before


def test_rehearsal_weights_are_rounded_fp32():
    rehearsal = rehearsal_of(half_graph(OVERFLOW, ["gain"]))
    weights = {v.dtype for v in rehearsal.graph.initializers.values()}
    assert weights == {ir.DataType.FLOAT}
    assert rehearsal.graph.initializers["undo_by"].const_value.numpy() == np.float16(1 / 300)


def test_rehearsal_rounds_a_tensor_once():
    rehearsal = rehearsal_of(half_graph(SENSITIVE_SUM))
    rounded = {n.name.removesuffix("/half") for n in rehearsal.graph if n.name.endswith("/half")}
    assert rounded == {"preprocessing/Add/fp16", "x", "high", "back", "pooled"}


def test_rehearsal_fp32_nodes_are_exact():
    rehearsal = rehearsal_of(half_graph(OVERFLOW, ["gain", "undo"]))
    found = run(with_outputs(rehearsal, ["x", "high"]))
    assert np.array_equal(found["high"], found["x"] * np.float32(300))
    assert found["high"].max() > 65504


def test_rehearsal_constants_become_fp32():
    # ONNX text has FP16 numbers as their bits: 18176 is 7, 14336 is 0.5.
    text = """<ir_version: 10, opset_import: ["" : 20]>
    net (uint8[N, 4, 4, 3] images) => (float[N, 4, 4, 3] logits) {
        [in] x = Cast<to = 10>(images)
        [low] low = Constant<value = float16 {18176}>()
        [clip] y = Clip(x, low)
        [size] size = Shape(y)
        [ones] ones = ConstantOfShape<value = float16[1] {14336}>(size)
        [add] z = Mul(y, ones)
        [out] logits = Cast<to = 1>(z)
    }"""
    rehearsal = rehearsal_of(ir.from_onnx_text(text))
    onnx.checker.check_model(model_bytes(rehearsal), full_check=True)
    assert np.array_equal(run(rehearsal)["logits"], np.maximum(IMAGES, 7) * np.float32(0.5))


def columns(nodes, keep=(), **options):
    """A switchable rehearsal, and a function from the tensors left exact to its logits."""
    model, tensors = switchable_rehearsal(half_graph(nodes, keep, **options))
    onnx.checker.check_model(model_bytes(model), full_check=True)

    def logits(*exact):
        switches = np.isin(tensors, exact)
        return run(model, exact=np.tile(switches, (len(IMAGES), 1)))["logits"]

    return tensors, logits


@pytest.mark.parametrize("nodes", [OVERFLOW, UNDERFLOW, SENSITIVE_SUM])
def test_switchable_rehearsal_columns_are_guarded_tensors(nodes):
    tensors, _ = columns(nodes)
    assert tensors == tuple(guardians(deploy_graph(nodes)))


def test_switchable_rehearsal_all_off_is_rehearsal():
    _, logits = columns(SENSITIVE_SUM)
    assert np.array_equal(logits(), run(rehearsal_of(half_graph(SENSITIVE_SUM)))["logits"])


def test_switchable_rehearsal_finds_costliest_rounding():
    tensors, logits = columns(SENSITIVE_SUM)
    exact = run(deploy_graph(SENSITIVE_SUM))["logits"]
    errors = {tensor: np.abs(logits(tensor) - exact).max() for tensor in tensors}
    assert min(errors, key=errors.__getitem__) == "high"
    others = [error for tensor, error in errors.items() if tensor != "high"]
    assert errors["high"] < 0.05 * min(others)


def test_switchable_rehearsal_of_an_overflow():
    _, logits = columns(OVERFLOW)
    assert np.isinf(logits("x", "back", "pooled")).all()
    assert np.isfinite(logits("high")).all()


def test_switchable_rehearsal_by_image():
    model, tensors = switchable_rehearsal(half_graph(OVERFLOW))
    exact = np.zeros((len(IMAGES), len(tensors)), np.bool_)
    exact[2, tensors.index("high")] = True
    finite = np.isfinite(run(model, exact=exact)["logits"]).all(axis=1)
    assert finite.tolist() == [False, False, True, False]


def test_switchable_rehearsal_behind_fp32_nodes():
    tensors, logits = columns(OVERFLOW, ["stem", "gain"])
    assert tensors == ("high", "back", "pooled")
    assert np.isinf(logits()).all()
    assert np.isfinite(logits("high")).all()


def test_switchable_rehearsal_skips_tensors_without_batch():
    tensors, _ = columns(
        "[table] t = Exp(w) [scale] x = Mul(input, t) [pool] p = GlobalAveragePool(x) "
        "[flatten] logits = Flatten(p)",
        weights="float[1] w = {0.1}",
    )
    assert tensors == ("x", "p")


def test_switchable_rehearsal_of_computed_logits():
    tensors, logits = columns(
        "[mean] logits = ReduceMean<keepdims = 0>(input, axes)", weights="int64[2] axes = {2, 3}"
    )
    assert tensors == ("logits",)
    assert np.array_equal(logits(), through_fp16(logits("logits")))
    assert not np.array_equal(logits(), logits("logits"))


def test_switchable_rehearsal_without_rounding():
    names = [node.name for node in deploy_graph(OVERFLOW).graph]
    tensors, logits = columns(OVERFLOW, names)
    assert tensors == ()
    assert np.array_equal(logits(), run(deploy_graph(OVERFLOW))["logits"])


def test_rehearsal_of_an_unknown_type():
    text = """<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
    net (uint8[N, 4, 4, 3] images) => (float[N, 4, 4, 3] logits) {
        x = mine.Secret(images)
        logits = Cast<to = 1>(x)
    }"""
    with pytest.raises(GraphError, match="type of x"):
        rehearsal_of(ir.from_onnx_text(text))
