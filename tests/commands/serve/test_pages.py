"""The pages, the description of the interface, and the metrics."""

import re

import pytest
from chromium import open_browser


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_ask_nobody_else(server, path):
    answer = server.ask("GET", path)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.body.decode()
    assert not re.search(r"""(src|href)=["'](?!data:|docs|openapi\.json)[^"']""", page)
    assert "://" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src &#39;none&#39;" in policy
    assert ("connect-src" in policy) == (path == "/")
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"


def test_openapi_document_is_valid_and_names_every_route(server):
    document = server.ask("GET", "/openapi.json").value
    assert document["openapi"] == "3.1.0"
    assert {*document["paths"]} == {
        "/predict",
        "/metrics",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/colours",
        "/v2/models/colours/ready",
        "/v2/models/colours/infer",
    }
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(document)


def test_openapi_schemas_fit_what_is_answered(server, photo):
    jsonschema = pytest.importorskip("jsonschema")
    document = server.ask("GET", "/openapi.json").value

    def check(name, value):
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.validate(value, schema)

    check("Row", server.post("/predict", photo).value)
    check("Row", server.post("/predict", b"x").value)
    check("ServerMetadata", server.ask("GET", "/v2").value)
    check("ModelMetadata", server.ask("GET", "/v2/models/colours").value)
    check("Error", server.ask("GET", "/v2/models/crows").value)
    with pytest.raises(jsonschema.ValidationError):
        check("Row", {"path": "x"})


def test_metrics_count(server, photo):
    requests = 'deploykit_requests_total{route="predict",status="200"}'
    unreadable = 'deploykit_images_total{status="unsupported"}'
    before = server.metric(requests), server.metric(unreadable)
    assert server.post("/predict", photo).status == 200
    assert server.post("/predict", b"x").status == 422
    assert (server.metric(requests), server.metric(unreadable)) == (before[0] + 1, before[1] + 1)
    text = server.ask("GET", "/metrics").body.decode()
    assert 'bundle="colours"' in text
    assert 'status="proven"' in text
    assert "deploykit_batch_seconds_count" in text


def test_home_page_shows_the_answers_to_dropped_photos(server, photo_folder, tmp_path):
    """Driven as a visitor does; it asks this server only."""
    with open_browser(tmp_path / "profile") as browser:
        page = browser.open(f"http://127.0.0.1:{server.port}/")
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 cut off")
        page.send("DOM.enable")
        root = page.send("DOM.getDocument")["root"]["nodeId"]
        place = page.send("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        files = [str(photo_folder / "red" / "00.png"), str(tmp_path / "broken.jpg")]
        page.send("DOM.setFileInputFiles", nodeId=place, files=files)
        text = page.evaluate(
            "new Promise(done => { const look = () => "
            "document.querySelectorAll('.answer h3, .answer .bad').length == 2 "
            "? done(document.getElementById('answers').innerText) : setTimeout(look, 20); "
            "look(); })"
        )
        assert "red" in text
        assert "corrupt: It begins as JPEG" in text
        screen = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
        page.send("Emulation.setDeviceMetricsOverride", width=360, **screen)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        own = f"http://127.0.0.1:{server.port}/"
        assert all(url.startswith((own, f"blob:{own}")) for url in page.requests)
        # The two answers' own statuses are no complaints; what the policy forbids would be one.
        assert not [each for each in page.complaints if "422" not in each]
        docs = browser.open(f"{own}docs")
        assert "/predict" in docs.evaluate("document.body.innerText")
        assert not docs.complaints
