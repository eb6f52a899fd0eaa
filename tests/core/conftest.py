"""A real S3 server process, and one store of each kind."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.s3_server import s3_server

BUCKET = "federation"


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server of our own, with one bucket and credentials in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "silo")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.delenv("AWS_PROFILE", raising=False)
        with s3_server(tmp_path_factory.mktemp("s3") / "server.log") as endpoint:
            import boto3

            client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
            client.create_bucket(Bucket=BUCKET)
            client.close()
            yield endpoint


@pytest.fixture(params=["local", "s3"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens the same, at first empty, store of each kind; every call gives a new object, as another process would have."""
    return new_store(request.param, request, tmp_path)


def new_store(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens the same new store of `kind` again and again."""
    if kind == "local":
        return lambda: open_store(str(tmp_path / "store"))
    endpoint = request.getfixturevalue("s3_endpoint")
    url = f"s3://{BUCKET}/{os.getpid()}-{next(_prefixes)}"
    return lambda: open_store(url, endpoint_url=endpoint)


_prefixes = itertools.count()


@pytest.fixture
def store(open_again: Callable[[], Store]) -> Store:
    return open_again()


@pytest.fixture
def peak_memory() -> Callable[[Callable[[], object]], int]:
    """Runs something and gives the most bytes that Python and numpy held for it at once."""

    def measure(action: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            action()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure
