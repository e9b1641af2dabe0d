"""``POST /predict``: the rows of ``predict``, and what is refused."""

import base64
import io
import json

import pytest
from odd_files import png
from PIL import Image
from serving import served

import deploykit
from deploykit.commands.predict.tables import json_line
from deploykit.commands.serve.admission import Limits


def form(*parts, boundary="xyz"):
    """A form with files: pairs of a name and what the file holds."""
    head = 'Content-Disposition: form-data; name="f"; filename='
    lines = [
        f'--{boundary}\r\n{head}"{name}"\r\n\r\n'.encode() + data + b"\r\n" for name, data in parts
    ]
    return b"".join([*lines, f"--{boundary}--\r\n".encode()])


#: A few bytes that say that they have 4 billion pixels.
BOMB = png(65_000, 65_000)
FORM = "multipart/form-data; boundary=xyz"


def test_predict_gives_the_rows_of_the_command(server, exported_bundle, photo_folder):
    options = {"bundle": exported_bundle, "runtime": "onnxruntime-cpu"}
    for row in [*deploykit.predict(photo_folder, **options)][::7]:
        answer = server.post("/predict", (photo_folder / row.path).read_bytes())
        assert answer.status == 200
        written = json.loads(json_line(row, 3))
        assert answer.value == written | {"path": "image", "expected": None}


def test_predict_takes_whatever_a_file_is_called(server, photo):
    assert server.post("/predict", photo, Content_Type="image/png").value["label"] == "red"
    assert server.post("/predict", photo, Content_Type="text/plain").value["label"] == "red"


@pytest.mark.parametrize("kind", ["form", "json"])
def test_predict_several_images_a_row_each(server, photo, kind):
    parts = [("a.png", photo), ("b.jpg", b"\xff\xd8 cut off"), ("c.png", BOMB)]
    if kind == "form":
        answer = server.post("/predict", form(*parts), Content_Type=FORM)
        names = ["a.png", "b.jpg", "c.png"]
    else:
        texts = [base64.b64encode(data).decode() for _, data in parts]
        body = json.dumps(texts).encode()
        answer = server.post("/predict", body, Content_Type="application/json")
        names = ["image 0", "image 1", "image 2"]
    assert answer.status == 200
    assert [row["path"] for row in answer.value] == names
    assert [row["status"] for row in answer.value] == ["ok", "corrupt", "too-large"]
    assert [row["label"] for row in answer.value] == ["red", None, None]


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"\xff\xd8 cut off", "corrupt"), (BOMB, "too-large"), (b"x", "unsupported")],
)
def test_predict_one_unreadable_image_is_422_with_its_row(server, data, status):
    answer = server.post("/predict", data)
    assert answer.status == 422
    assert answer.value["status"] == status
    assert answer.value["reason"]


def test_predict_of_a_multi_label_bundle(other, photo_folder):
    """Thresholds and head are the bundle's."""
    photo = photo_folder / "red" / "00.png"
    (row,) = deploykit.predict(photo, bundle=other, runtime="onnxruntime-cpu")
    with served(other) as server:
        answer = server.post("/predict", photo.read_bytes()).value
    expected = json.loads(json_line(row, 3, other.manifest.labels.head))
    assert answer == expected | {"path": "image"}
    assert "labels" in answer


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"", {}, 400, "empty"),
        (b"{", {"Content_Type": "application/json"}, 400, "base64"),
        (b"[1]", {"Content_Type": "application/json"}, 400, "base64"),
        (b'["%"]', {"Content_Type": "application/json"}, 400, "image 0 is no base64"),
        (b"[]", {"Content_Type": "application/json"}, 400, "no image"),
        (b"x", {"Content_Type": "multipart/form-data"}, 400, "boundary"),
        (b"x", {"Content_Type": FORM}, 400, "damaged"),
        (form(("a", b"x"))[:-9], {"Content_Type": FORM}, 400, "too early"),
        (form(), {"Content_Type": FORM}, 400, "no image"),
        (b"x", {"Content_Encoding": "gzip"}, 415, "Content-Encoding"),
    ],
)
def test_predict_bad_request_says_why(server, body, headers, status, said):
    answer = server.post("/predict", body, **headers)
    assert (answer.status, said in answer.value["error"]) == (status, True), answer.body


def test_predict_large_bodies_and_lists_are_413(exported_bundle, photo):
    with served(exported_bundle, limits=Limits(queue=2, body_bytes=10_000)) as server:
        too_large = server.post("/predict", bytes(10_001))
        assert (too_large.status, too_large.value) == (
            413,
            {"error": "A body may have 10,000 bytes at most."},
        )
        # Without its length the body is read as far as it may go.
        assert server.post("/predict", iter([bytes(6000)] * 2)).status == 413
        body = json.dumps([base64.b64encode(b"x").decode()] * 3).encode()
        assert server.post("/predict", body, Content_Type="application/json").status == 413
        assert server.post("/predict", form(*[("a", b"x")] * 5), Content_Type=FORM).status == 413
        tensor = {"name": "image", "datatype": "BYTES", "shape": [3], "data": ["eA=="] * 3}
        infer = server.post("/v2/models/colours/infer", json.dumps({"inputs": [tensor]}).encode())
        assert infer.status == 413
        assert infer.value["error"] == "A request may have 2 images at most; this has 3."
        assert server.post("/predict", photo).status == 200


def test_predict_writes_no_file(server, tmp_path, monkeypatch):
    """A form with a large file: libraries keep those in temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    buffer = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).save(buffer, "PNG")
    assert len(buffer.getvalue()) > 2**20
    answer = server.post("/predict", form(("noise.png", buffer.getvalue())), Content_Type=FORM)
    assert answer.value[0]["status"] == "ok"
    assert not [*tmp_path.iterdir()]


def test_unknown_paths_and_methods_are_json(server):
    assert (server.ask("GET", "/nothing").status, server.ask("GET", "/predict").status) == (
        404,
        405,
    )
    assert server.ask("GET", "/nothing").value == {"error": "Not Found."}
