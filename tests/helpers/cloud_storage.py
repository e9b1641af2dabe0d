"""S3 on this machine."""

import contextlib
import logging
import os

from deploykit.system.cloud import file_system


@contextlib.contextmanager
def s3_server(monkeypatch):
    """A server of S3 on 127.0.0.1 that ends with the block, and fsspec's file system of it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").disabled = True
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    file_system.cache_clear()
    try:
        yield file_system("s3")
    finally:
        file_system.cache_clear()
        server.stop()
