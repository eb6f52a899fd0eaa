"""The store at a URL: the only place that knows which kinds of store there are. Called by every process of hub and silos."""

from __future__ import annotations

from fedhelp_core.errors import ConfigError
from fedhelp_core.store.base import Store
from fedhelp_core.store.local import LocalStore
from fedhelp_core.store.url import folder_of


def open_store(url: str, *, endpoint_url: str | None = None) -> Store:
    """The store at `url`: a plain folder, file:///folder, or s3://bucket/prefix (`endpoint_url`: S3 other than AWS).

    Reaches for nothing yet: an unreachable store shows at the first call.

    Raises:
        ConfigError: `url` is none of these.
    """
    try:
        folder = folder_of(url)
    except ValueError as e:
        raise ConfigError(f"store url: {e}") from e
    if folder is not None:
        return LocalStore(folder)
    from fedhelp_core.store.s3 import S3Store  # boto3 is 30 MB and 0.3 s to import; a folder needs none of it

    return S3Store(url, endpoint_url=endpoint_url)
