"""A server that speaks S3's protocol, on this machine: fixture `bucket`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

_numbers = itertools.count()
ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What the environment says: pyarrow and boto3 read it, and so do processes that are started."""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Its host and port; an account is in the environment, for processes that are started too."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    before = {name: os.environ.get(name) for name in ACCOUNT}
    os.environ.update(ACCOUNT)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def bucket(s3_server) -> str:
    """The address of a folder in a new bucket."""
    import boto3

    name = f"bucket{next(_numbers)}"
    boto3.client("s3", endpoint_url=f"http://{s3_server}").create_bucket(Bucket=name)
    return f"s3://{name}/studies/flowers?endpoint_override={s3_server}&scheme=http"
