"""``verify --server``: a server is compared as any other candidate, and a lying one fails."""

from __future__ import annotations

import io
import socketserver
import threading
from dataclasses import replace

import numpy as np
import pytest
from kserve_server import Model, closed_port, serving
from PIL import Image

from deploykit.bundle.folder import CANONICAL_GRAPH
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.commands.verify.text import verification_text, verification_value
from deploykit.errors import GraphError, InputError, ServerError, UsageError
from deploykit.images.preprocess import preprocess
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.runtime._server_client import parse_address
from deploykit.specs.heads import softmax

PIXELS = ("images", "UINT8", [-1, 16, 16, 3])
NORMALISED = ("input", "FP32", [-1, 3, 16, 16])
FILES = ("image", "BYTES", [-1])
LOGITS = ("logits", "FP32", [-1, 3])
PROBABILITIES = ("probabilities", "FP32", [-1, 3])


@pytest.fixture(autouse=True)
def few_requests(monkeypatch):
    """Timing takes a hundred requests where it is for real."""
    monkeypatch.setattr("deploykit.commands.verify.server._REQUESTS", 4)
    monkeypatch.delenv("DEPLOYKIT_SERVER_KEY", raising=False)


@pytest.fixture(scope="module")
def network(exported_bundle):
    """The canonical graph: what every server here runs."""
    with open_candidate(
        exported_bundle, Candidate(CANONICAL_GRAPH, "onnxruntime-cpu", "fp32")
    ) as session:
        yield session


@pytest.fixture
def model(exported_bundle, network):
    """Make a model that answers rightly; ``spoil`` changes pixels before the network."""
    preprocessing = exported_bundle.manifest.preprocessing

    def make(*inputs, outputs=(LOGITS,), spoil=lambda images: images, logits=None, **fields):
        def answer(name, values):
            if name == "input":
                found = network.run_normalised(values)
            elif name == "image":
                decoded = [Image.open(io.BytesIO(f)).convert("RGB") for f in values.reshape(-1)]
                found = network.run(np.stack([preprocess(i, preprocessing) for i in decoded]))
            else:
                found = network.run(spoil(values))
            found = found if logits is None else logits(found)
            return {"logits": found, "probabilities": softmax(found)}

        return Model(answer, [*inputs], [*outputs], **fields)

    return make


def redder(images):
    """What a mean does that is 10 grey levels too low in red."""
    return np.clip(images.astype(int) + np.array([10, 0, 0]), 0, 255).astype(np.uint8)


def verified(bundle, url, folder=None, **fields):
    request = VerifyRequest(server=url, images=folder, self_test=folder is None, **fields)
    return verify_bundle(bundle, request)


@pytest.mark.parametrize("tensor", [PIXELS, NORMALISED, FILES])
def test_server_that_answers_rightly_passes(exported_bundle, model, photo_folder, tensor):
    with serving(model(tensor)) as url:
        found = verified(exported_bundle, url, photo_folder)
    (verdict,) = found.verdicts
    assert found.passed
    assert verdict.kind == "served"
    assert verdict.candidate.title == f"colours/{tensor[0]} on made 1.0 over http"
    assert verdict.measurement.max_relative_error < 1e-5
    assert verdict.measurement.images == 45


def test_server_is_asked_by_each_input(exported_bundle, model, photo_folder):
    with serving(model(PIXELS, FILES)) as url:
        found = verified(exported_bundle, url, photo_folder)
    assert [each.candidate.graph for each in found.verdicts] == ["colours/images", "colours/image"]
    assert found.passed
    text = verification_text(found)
    assert text.count("proves no file of this bundle") == 1
    assert "were asked as they answered then" in text


def test_server_proves_nothing_of_the_bundle(bundle, model, photo_folder):
    before = (bundle.folder / "bundle.json").read_bytes()
    with serving(model(PIXELS)) as url:
        found = verified(bundle, url, photo_folder)
    assert (bundle.folder / "bundle.json").read_bytes() == before
    text = verification_text(found)
    assert "The server decides as" in text
    assert "was asked as it answered then: that proves no file of this bundle" in text


def test_server_with_a_wrong_mean_fails(exported_bundle, model, photo_folder):
    with serving(model(PIXELS, spoil=redder)) as url:
        found = verified(exported_bundle, url, photo_folder)
    (verdict,) = found.verdicts
    assert verdict.failed
    assert "the largest logit error is" in " ".join(verdict.reasons)


def test_server_with_bgr_fails_with_flips(exported_bundle, model, photo_folder):
    with serving(model(PIXELS, spoil=lambda images: images[..., ::-1].copy())) as url:
        found = verified(exported_bundle, url, photo_folder)
    assert found.verdicts[0].measurement.flips > 20
    assert "does not decide as" in verification_text(found)


def test_server_with_nan_fails(exported_bundle, model):
    def one_nan(logits):
        logits = logits.copy()
        logits[:, 0] = np.nan
        return logits

    made = model(PIXELS, logits=one_nan)
    with serving(made) as url:
        found = verified(exported_bundle, url)
    assert "NaN or infinite" in found.verdicts[0].reasons[0]
    assert found.verdicts[0].failed


def test_server_without_binary_tensors_gets_json(exported_bundle, model):
    made = model(PIXELS, FILES, extensions=())
    with serving(made) as url:
        found = verified(exported_bundle, url)
    assert found.passed
    assert [each.candidate.graph for each in found.verdicts] == ["colours/images"]
    assert all("data" in request["inputs"][0] for request in made.requests)


def test_server_with_probabilities_alone(exported_bundle, model, photo_folder):
    with serving(model(PIXELS, outputs=[PROBABILITIES])) as url:
        found = verified(exported_bundle, url, photo_folder)
    measured = found.verdicts[0].measurement
    assert found.passed
    assert not measured.has_logits
    assert measured.max_probability_change < 1e-6
    assert "its logits were not to be had" in verification_text(found)
    assert verification_value(found)["verdicts"][0]["measurement"]["max_abs_error"] is None


def test_server_with_probabilities_and_a_wrong_mean_fails(exported_bundle, model, photo_folder):
    with serving(model(PIXELS, outputs=[PROBABILITIES], spoil=redder)) as url:
        found = verified(exported_bundle, url, photo_folder)
    assert "changes of probability" in found.verdicts[0].reasons[0]


def test_server_takes_logits_before_probabilities(exported_bundle, model):
    with serving(model(PIXELS, outputs=[PROBABILITIES, LOGITS])) as url:
        found = verified(exported_bundle, url)
    assert found.verdicts[0].measurement.has_logits


def test_server_with_other_labels_fails(exported_bundle, model):
    names = ("green", "blue", "red")
    made = model(PIXELS, extensions=("binary_tensor_data", "classification"), labels=names)
    with serving(made) as url:
        found = verified(exported_bundle, url)
        made.labels = exported_bundle.manifest.labels.names
        assert verified(exported_bundle, url).passed
    assert found.verdicts[0].failed
    assert "calls class 0 'green', the bundle 'blue'" in found.verdicts[0].reasons[0]


def test_server_batches_up_to_its_largest(exported_bundle, model, photo_folder):
    made = model(PIXELS, extensions=("binary_tensor_data", "model_configuration"), max_batch_size=4)
    with serving(made) as url:
        found = verified(exported_bundle, url, photo_folder)
    assert found.verdicts[0].measurement.batch_sizes == (1, 2, 4)
    assert {each.batch_size for each in found.latencies[found.verdicts[0].candidate]} == {1, 4}


def test_server_latency_is_told(exported_bundle, model):
    with serving(model(PIXELS)) as url:
        found = verified(exported_bundle, url)
    one, several = found.latencies[found.verdicts[0].candidate]
    assert (one.batch_size, one.requests, several.batch_size) == (1, 4, 8)
    assert 0 < one.p50_ms <= one.p90_ms <= one.p99_ms
    assert "1 image a request: p50" in verification_text(found)
    value = verification_value(found)
    assert value["latencies"][0]["requests"][0]["p99_ms"] == one.p99_ms


def test_server_key_comes_from_the_environment(exported_bundle, model, monkeypatch):
    with serving(model(PIXELS, key="abc")) as url:
        with pytest.raises(ServerError, match="wants a key") as refused:
            verified(exported_bundle, url)
        monkeypatch.setenv("DEPLOYKIT_SERVER_KEY", "wrong")
        with pytest.raises(ServerError, match="refuses the key"):
            verified(exported_bundle, url)
        monkeypatch.setenv("DEPLOYKIT_SERVER_KEY", "abc")
        assert verified(exported_bundle, url).passed
    assert "DEPLOYKIT_SERVER_KEY" in refused.value.hint


def test_server_that_is_not_there(exported_bundle):
    with pytest.raises(ServerError, match="cannot be reached"):
        verified(exported_bundle, f"127.0.0.1:{closed_port()}")


def test_server_without_tls(exported_bundle, model):
    with serving(model(PIXELS)) as url, pytest.raises(ServerError, match="cannot be trusted"):
        verified(exported_bundle, url.replace("http", "https"))


def test_server_that_is_not_ready(exported_bundle, model):
    with serving(model(PIXELS, ready=False)) as url:
        with pytest.raises(ServerError, match="'colours', which is not ready"):
            verified(exported_bundle, url)
        with pytest.raises(InputError, match="has no model 'birds'"):
            verified(exported_bundle, f"{url}/v2/models/birds")


def test_server_that_is_too_slow(exported_bundle, model, monkeypatch):
    monkeypatch.setattr("deploykit.runtime._server.ANSWER_S", 0.2)
    too_late = pytest.raises(ServerError, match=r"no whole answer within 0\.2 s")
    with serving(model(PIXELS, delay_s=1.0)) as url, too_late:
        verified(exported_bundle, url)


@pytest.mark.parametrize(
    ("tensor", "outputs", "message"),
    [
        (("images", "UINT8", [-1, 32, 32, 3]), [LOGITS], r"images UINT8 \[-1, 32, 32, 3\]"),
        (PIXELS, [("logits", "FP32", [-1, 7])], r"logits FP32 \[-1, 7\]"),
    ],
)
def test_server_of_another_model(exported_bundle, model, tensor, outputs, message):
    with serving(model(tensor, outputs=outputs)) as url, pytest.raises(GraphError, match=message):
        verified(exported_bundle, url)


def test_server_whose_answer_has_another_shape(exported_bundle, model):
    outputs = [("logits", "FP32", [-1, -1])]
    made = model(PIXELS, outputs=outputs, logits=lambda logits: logits[:, :2])
    with serving(made) as url, pytest.raises(GraphError, match=r"logits \(1, 2\)"):
        verified(exported_bundle, url)


def test_server_that_refuses_a_file_names_it(exported_bundle, model, photo_folder):
    made = model(FILES)
    right = made.answer
    bad = (photo_folder / "green" / "03.png").read_bytes()

    def refuse(name, values):
        if bad in values.reshape(-1).tolist():
            raise ValueError("cannot decode it")
        return right(name, values)

    with (
        serving(replace(made, answer=refuse)) as url,
        pytest.raises(InputError, match=r"green/03.png: .*cannot decode it"),
    ):
        verified(exported_bundle, url, photo_folder)


@pytest.mark.parametrize(
    "answer", [b"", b"\0\1 no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"]
)
def test_server_that_ends_the_connection(exported_bundle, answer):
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with pytest.raises(ServerError, match="no whole answer in HTTP"):
                verified(exported_bundle, f"127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()


def test_server_that_answers_with_texts(exported_bundle, model):
    made = model(PIXELS)
    texts = np.full((1, 3), b"red", np.object_)
    with (
        serving(replace(made, answer=lambda *_: {"logits": texts})) as url,
        pytest.raises(InputError, match="has no numbers"),
    ):
        verified(exported_bundle, url)


def test_server_that_speaks_another_language(exported_bundle, model):
    with serving(model(PIXELS)) as url, pytest.raises(ServerError):
        verified(exported_bundle, url.removeprefix("http://"), protocol="grpc")


@pytest.mark.parametrize(
    "url", ["ftp://a", "http://user:secret@a", "http://a:x", "http://a/v2/models", "http://", "a b"]
)
def test_server_address_that_is_none(exported_bundle, url):
    with pytest.raises(UsageError) as refused:
        verified(exported_bundle, url)
    assert "secret" not in str(refused.value)


def test_server_address_is_read_and_shown_as_urls_are():
    address = parse_address("HTTP://h:1/v2/models/a%20b", "http", "c")
    assert (str(address), address.model) == ("http://h:1", "a b")
    with pytest.raises(UsageError) as refused:
        parse_address("ftp://a", "http", "a b")
    assert refused.value.hint.endswith("/v2/models/a%20b")


def test_server_stages_name_the_change(exported_bundle, model, photo_folder):
    with serving(model(PIXELS, spoil=lambda images: images[..., ::-1].copy())) as url:
        found = verified(exported_bundle, url, photo_folder, stages=True)
    (explanation,) = found.diagnosis.explanations
    assert explanation.cause.change == "BGR"
    assert explanation.cause.agreed == explanation.images == 45
    assert explanation.cause.probability_change < 1e-5
    text = verification_text(found)
    assert "FOUND  BGR: gives what" in text
    assert "With one change it is explained: BGR" in text
    value = verification_value(found)["explanations"][0]["tried"]
    assert [each["explains"] for each in value].count(True) == 1


def test_server_stages_say_that_nothing_explains_it(exported_bundle, model, photo_folder):
    with serving(model(PIXELS, spoil=redder)) as url:
        found = verified(exported_bundle, url, photo_folder, stages=True)
    assert found.diagnosis.explanations[0].cause is None
    assert "usual changes explains it" in verification_text(found)


def test_server_that_is_right_about_pixels_alone(exported_bundle, model, photo_folder):
    made = model(PIXELS, FILES)
    right = made.answer

    def answer(name, values):
        found = right(name, values)
        return {"logits": found["logits"][:, ::-1]} if name == "image" else found

    with serving(replace(made, answer=answer)) as url:
        found = verified(exported_bundle, url, photo_folder)
    assert [verdict.passed for verdict in found.verdicts] == [True, False]
    assert "colours/images on made 1.0 over http is right: the fault is in" in verification_text(
        found
    )


def test_server_by_the_command(exported_bundle, model, photo_folder, tmp_path, monkeypatch, capsys):
    from deploykit.commands.app import run

    page, junit = tmp_path / "certificate.html", tmp_path / "parity.xml"
    files = ["--html", str(page), "--junit", str(junit)]
    with serving(model(PIXELS)) as url:
        wanted = ["verify", "--bundle", str(exported_bundle.folder), "--server", url]
        assert run([*wanted, "--images", str(photo_folder), *files]) == 0
        assert run([*wanted, "--protocol", "soap"]) == 2
    assert run([*wanted, "--self-test"]) == 5
    shown = page.read_text(encoding="utf-8")
    assert "p99" in shown
    assert "served" in shown
    assert "latency" in junit.read_text(encoding="utf-8")
    assert "cannot be reached" in capsys.readouterr().err
