"""Who may ask."""

import pytest
from serving import served

from deploykit.commands.serve.keys import check_exposure, is_loopback, read_keys
from deploykit.errors import InputError, UsageError

KEY, OTHER = "correct-horse-battery-staple", "0123456789abcdef"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"# of the shop\n{KEY}\n\n  {OTHER}  \n")
    return path


def test_server_with_keys(exported_bundle, key_file, photo):
    with served(exported_bundle, keys=key_file) as server:
        refused = server.post("/predict", photo)
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert server.post("/predict", photo, Authorization=f"Bearer {KEY}x").status == 401
        assert server.post("/predict", photo, Authorization=f"Basic {KEY}").status == 401
        for key in (KEY, OTHER):
            assert server.post("/predict", photo, Authorization=f"Bearer {key}").status == 200
        for path in ("/metrics", "/v2", "/v2/models/colours", "/nothing"):
            assert server.ask("GET", path).status == 401
        for path in ("/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"):
            assert server.ask("GET", path).status == 200
        assert server.ask("GET", "/openapi.json").value["security"] == [{"key": []}]
        assert b'type="password"' in server.ask("GET", "/").body


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no key"),
        ("# none\n", "has no key"),
        ("short\n", "fewer than 16"),
        (b"\xff", "UTF-8"),
    ],
)
def test_read_keys_says_what_is_wrong(tmp_path, text, said):
    path = tmp_path / "keys.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said):
        read_keys(path)


def test_read_keys_as_windows_writes_them(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_bytes(f"\ufeff{KEY}\r\n{OTHER}\r\n".encode())
    keys = read_keys(path)
    assert keys.allow(f"Bearer {KEY}")
    assert keys.allow(f"Bearer {OTHER}")


def test_read_keys_without_a_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "keys.txt")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "shop.example"])
def test_check_exposure_needs_a_decision(host):
    with pytest.raises(UsageError, match="whoever reaches this machine"):
        check_exposure(host, has_keys=False, no_api_key=False)
    check_exposure(host, has_keys=True, no_api_key=False)
    check_exposure(host, has_keys=False, no_api_key=True)
    with pytest.raises(UsageError, match="contradict"):
        check_exposure(host, has_keys=True, no_api_key=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_is_loopback(host):
    assert is_loopback(host)
    check_exposure(host, has_keys=False, no_api_key=False)
