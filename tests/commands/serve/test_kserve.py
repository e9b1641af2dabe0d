"""KServe v2, asked by Triton's own client and by hand."""

import base64
import json

import numpy as np
import pytest

import deploykit
from deploykit.commands.serve.kserve import read_call
from deploykit.commands.serve.refused import RefusedError

triton = pytest.importorskip("tritonclient.http")
INFER = "/v2/models/colours/infer"


@pytest.fixture(scope="module")
def client(server):
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def model(exported_bundle):
    with deploykit.load(exported_bundle, runtime="onnxruntime-cpu") as model:
        yield model


def test_metadata_and_health(client, server, exported_bundle):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("colours")
    assert client.is_model_ready("colours", "1")
    assert not client.is_model_ready("crows")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    told = client.get_model_metadata("colours")
    assert told["inputs"] == [
        {"name": "images", "datatype": "UINT8", "shape": [-1, 16, 16, 3]},
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
    ]
    assert told["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
    ]
    assert told["parameters"]["proof"] == "proven"
    missing = server.ask("GET", "/v2/models/colours/versions/2")
    assert (missing.status, missing.value) == (
        404,
        {"error": "There is no version '2'; there is 1."},
    )


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer_pixels_to_the_bit(client, model, batch, binary_in, binary_out):
    tensor = triton.InferInput("images", batch.shape, "UINT8")
    tensor.set_data_from_numpy(batch, binary_data=binary_in)
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary_out)
        for name in ("probabilities", "logits")
    ]
    result = client.infer("colours", [tensor], outputs=outputs, request_id="a 1")
    logits = model.logits(batch)
    assert np.array_equal(result.as_numpy("logits"), logits)
    head = model.bundle.manifest.labels.head
    expected = head.probabilities(logits).astype(np.float32)
    assert np.array_equal(result.as_numpy("probabilities"), expected)
    assert result.get_response()["id"] == "a 1"
    assert [each["name"] for each in result.get_response()["outputs"]] == [
        "probabilities",
        "logits",
    ]


def test_infer_without_outputs_gives_all(client, batch):
    tensor = triton.InferInput("images", batch.shape, "UINT8")
    tensor.set_data_from_numpy(batch)
    result = client.infer("colours", [tensor])
    assert result.as_numpy("logits").shape == result.as_numpy("probabilities").shape == (5, 3)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_infer_files(client, model, photo, photo_folder, shape):
    green = (photo_folder / "green" / "01.png").read_bytes()
    files = np.array([photo, green], np.object_).reshape(shape)
    tensor = triton.InferInput("image", shape, "BYTES")
    tensor.set_data_from_numpy(files)
    result = client.infer("colours", [tensor])
    names = [model.classes[k] for k in result.as_numpy("logits").argmax(axis=1)]
    assert names == ["red", "green"]


@pytest.mark.parametrize("nested", [True, False])
def test_infer_files_as_base64(server, photo, nested):
    text = base64.b64encode(photo).decode()
    data, shape = ([[text]], [1, 1]) if nested else ([text], [1])
    tensor = {"name": "image", "datatype": "BYTES", "shape": shape, "data": data}
    answer = server.post(INFER, json.dumps({"inputs": [tensor]}).encode())
    assert answer.status == 200
    assert np.argmax(answer.value["outputs"][0]["data"]) == 2


def test_infer_unreadable_file_is_400(client):
    tensor = triton.InferInput("image", (1,), "BYTES")
    tensor.set_data_from_numpy(np.array([b"\xff\xd8 cut"], np.object_))
    with pytest.raises(
        triton.InferenceServerException, match="image 0: corrupt: It begins as JPEG"
    ):
        client.infer("colours", [tensor])


def test_infer_nested_json(server, model, batch):
    tensor = {"name": "images", "datatype": "UINT8", "shape": [5, 16, 16, 3]}
    tensor["data"] = batch.tolist()
    answer = server.post(INFER, json.dumps({"inputs": [tensor]}).encode())
    (logits, _) = answer.value["outputs"]
    found = np.array(logits["data"], np.float32).reshape(logits["shape"])
    assert np.array_equal(found, model.logits(batch))


def pixels(**changes):
    return {
        "name": "images",
        "datatype": "UINT8",
        "shape": [1, 16, 16, 3],
        "data": [0] * 768,
    } | changes


def file(**changes):
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["eA=="]} | changes


@pytest.mark.parametrize(
    ("request_value", "said"),
    [
        ({}, "no inference request"),
        ({"inputs": []}, "has none"),
        ({"inputs": [pixels(), file()]}, "has images, image"),
        ({"inputs": [pixels(name="pixels")]}, "has pixels"),
        ({"inputs": [pixels(datatype="FP32")]}, "is UINT8, not FP32"),
        ({"inputs": [pixels(shape=[1, 3, 16, 16])]}, r"not \[1, 3, 16, 16\]"),
        ({"inputs": [pixels(shape=[0, 16, 16, 3], data=[])]}, "not"),
        ({"inputs": [pixels(shape=[10**12, 16, 16, 3])]}, r"has shape \[768\]"),
        ({"inputs": [pixels(shape=[-1, 16, 16, 3])]}, "no inference request"),
        ({"inputs": [pixels(data=[0] * 767)]}, "not"),
        ({"inputs": [pixels(data=[256] * 768)]}, "no tensor"),
        ({"inputs": [pixels(data=[0.5] * 768)]}, "no tensor"),
        ({"inputs": [pixels(data=[[[[0, 0, 0]]]])]}, r"has shape \[1, 1, 1, 3\]"),
        ({"inputs": [pixels(data=[[[[0], [0, 0]]]])]}, "no tensor"),
        ({"inputs": [pixels(data="x")]}, "no tensor"),
        ({"inputs": [pixels(parameters={"binary_data_size": 768})]}, "either"),
        ({"inputs": [pixels(parameters={"shared_memory_region": "x"})]}, "not supported"),
        ({"inputs": [file(shape=[2])]}, "has 1 elements"),
        ({"inputs": [file(shape=[1, 2])]}, "has shape"),
        ({"inputs": [file(data=["%"])]}, "no base64"),
        ({"inputs": [file(data=[1])]}, "no list of base64"),
        ({"inputs": [file(datatype="UINT8")]}, "is BYTES"),
        ({"inputs": [pixels()], "outputs": [{"name": "labels"}]}, "no output 'labels'"),
        ({"inputs": [pixels()], "outputs": [{"name": "logits"}] * 2}, "logits is asked for twice"),
        (
            {
                "inputs": [pixels()],
                "outputs": [{"name": "logits", "parameters": {"classification": 1}}],
            },
            "classification is not supported",
        ),
    ],
)
def test_read_call_bad_request_says_why(exported_bundle, request_value, said):
    with pytest.raises(RefusedError, match=said) as refused:
        read_call(json.dumps(request_value).encode(), None, exported_bundle)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("tensor", "rest", "length", "said"),
    [
        (pixels(parameters={"binary_data_size": 4}), b"1234", None, "does not have 4 bytes"),
        (pixels(parameters={"binary_data_size": 768}), b"1234", None, "4 are there"),
        (file(parameters={"binary_data_size": 6}), b"\x07\0\0\0ab", None, "longer than its data"),
        (file(parameters={"binary_data_size": -1}), b"", None, "-1 bytes"),
        (pixels(), b"", "9999", "9999"),
        (pixels(), b"", "-1", "-1"),
        (pixels(), b"", "1e3", "1e3"),
        (pixels(), b"", "9" * 5000, "is 9{20}, and"),
        (pixels(), b"more", None, "4 are there"),
    ],
)
def test_read_call_bad_binary_data_says_why(exported_bundle, tensor, rest, length, said):
    if "binary_data_size" in tensor.get("parameters", {}):
        tensor = {key: value for key, value in tensor.items() if key != "data"}
    text = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(RefusedError, match=said):
        read_call(text + rest, length or str(len(text)), exported_bundle)


@pytest.mark.parametrize(
    "where", ['"inputs": [], "parameters": {"a": %s}', '"inputs": [], "a": %s']
)
def test_infer_json_of_great_depth_is_refused(server, where):
    text = "{%s}" % (where % ("[" * 50_000 + "]" * 50_000))
    answer = server.post(INFER, text.encode())
    assert answer.status == 400
    assert "no inference request" in answer.value["error"]


def test_infer_header_of_a_thousand_digits_is_refused(server):
    answer = server.post(INFER, b"{}", Inference_Header_Content_Length="9" * 5000)
    assert answer.status == 400
