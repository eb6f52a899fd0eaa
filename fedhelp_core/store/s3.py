"""The Store over an S3 bucket: AWS, MinIO, Ceph, SeaweedFS. The only module that imports boto3; `open.open_store` imports it.

Write-once rests on conditional writes (`If-None-Match: *`), which AWS has had since 2024 and MinIO and Ceph have too;
`Store.probe` finds out whether a server honours them. Credentials come from the environment, as boto3 finds them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
)
from urllib3.exceptions import HTTPError

from fedhelp_core.answers import LARGEST_SKEW, clock_is_off, page_instead, skew_of, untrusted
from fedhelp_core.disk import Place, atomic_write, disk_errors, write_all
from fedhelp_core.errors import AccessDenied, ConfigError, FedHelpError, NotFound, PermanentError, StorageFull, StoreUnavailable
from fedhelp_core.printable import first_line
from fedhelp_core.proxies import proxies_for
from fedhelp_core.store.base import Store, check_key, check_size

_T = TypeVar("_T")

_PART_BYTES = 16 * 2**20  # of a multipart upload; S3 allows 10,000 parts, so larger files get larger parts
_WHOLE_BYTES = 64 * 2**20  # up to this size, one request
_PARALLEL_PARTS = 4
_MOST_PARTS = 9_000
_COPY_BYTES = 2**20  # written at once
_LARGEST_ANSWER = 16 * 2**20  # bytes of one that is no object: a page of a listing has 1000 keys of at most 1 KiB
_MOST_PAGES = 10_000
_PATIENCE_S = 120.0  # for an answer, besides
_SLOWEST = 32 * 2**10  # bytes a second
_TRIES = 3  # of a download that breaks off, and of a write that meets another one in flight
_CONFIG = Config(
    connect_timeout=3, read_timeout=60, retries={"mode": "standard", "max_attempts": 3}, max_pool_connections=16,
    # our own sha256 is in every manifest; the newer default checksums are refused by S3 servers other than AWS
    request_checksum_calculation="when_required", response_checksum_validation="when_required",
)
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AllAccessDisabled"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientCapacity"}
_BUSY = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "ServiceUnavailable", "InternalError"}
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
_UNKNOWN = {"NotImplemented", "501"}  # of conditional writes: what some appliances and gateways say to If-None-Match


_COPY = Place({StorageFull: "no room for a copy of an object ({why}); free some, or set TMPDIR"}, otherwise=StorageFull)


class S3Store(Store):
    """Objects of s3://bucket/prefix; threads may share it, and a forked child gets connections of its own.

    Raises:
        ConfigError: the url has no bucket.
    """

    def __init__(self, url: str, *, endpoint_url: str | None = None) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError(f"store url {url!r}: s3://bucket/prefix expected")
        self.url = url
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._endpoint_url = endpoint_url
        self._lock = threading.Lock()
        self._client_of: tuple[int, Any] | None = None
        self._copies_of: tuple[int, Path] | None = None

    def put_new(self, key: str, body: bytes | Path) -> bool:
        """As Store.put_new. If a first try reached the server but its answer got lost, the second says False about our own object."""
        return self._patiently(lambda: self._put(key, body, {"IfNoneMatch": "*"}))

    def put(self, key: str, body: bytes | Path) -> None:
        """As Store.put."""
        self._patiently(lambda: self._put(key, body, {}))

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """As Store.get."""
        return self._patiently(lambda: self._download(key, max_bytes, b"".join))

    def fetch(self, key: str, max_bytes: int | None = None) -> Path:
        """As Store.fetch: a copy in a temporary folder ($TMPDIR), kept until `release` or the end of the process."""
        path = self._copies() / (sha256(key.encode()).hexdigest()[:32] + Path(key).suffix)
        if path.exists():
            check_size(self._name(key), path.stat().st_size, max_bytes)
            return path
        with disk_errors(path, _COPY), atomic_write(path) as scratch:
            self._patiently(lambda: self._download(key, max_bytes, lambda pieces: _save(pieces, scratch)))
        return path

    def release(self, path: Path) -> None:
        """As Store.release."""
        path.unlink(missing_ok=True)

    def size(self, key: str) -> int | None:
        """As Store.size."""
        try:
            with self._s3_errors(key):
                return int(self._client().head_object(Bucket=self._bucket, Key=self._full(key))["ContentLength"])
        except NotFound:
            return None

    def list(self, prefix: str) -> list[str]:
        """As Store.list."""
        with self._s3_errors(prefix):
            pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
            found: list[str] = []
            for number, page in enumerate(pages):
                found += [entry["Key"][len(self._prefix):] for entry in page.get("Contents", ())]
                if number >= _MOST_PAGES:
                    raise StoreUnavailable(f"{self._name(prefix)}: a listing that does not end after {len(found)} objects; is this an S3 server?")
            return sorted(found)

    def present(self, keys: Iterable[str], *, prefix: str) -> set[str]:
        """As Store.present: one listing for many, one look for one."""
        wanted = set(keys)
        if len(wanted) < 2:
            return {key for key in wanted if self.size(key) is not None}
        return wanted.intersection(self.list(prefix))

    def delete(self, key: str) -> None:
        """As Store.delete."""
        with self._s3_errors(key):
            self._client().delete_object(Bucket=self._bucket, Key=self._full(key))

    @property
    def scratch(self) -> Path:
        """As Store.scratch: $TMPDIR."""
        return Path(tempfile.gettempdir())

    # ---- writing

    def _put(self, key: str, body: bytes | Path, condition: dict[str, str]) -> bool:
        target = {"Bucket": self._bucket, "Key": self._full(key)}
        try:
            with self._s3_errors(key):
                if isinstance(body, bytes):
                    self._client().put_object(**target, **condition, Body=body)
                elif body.stat().st_size <= _WHOLE_BYTES:
                    with body.open("rb") as file:
                        self._client().put_object(**target, **condition, Body=file)
                else:
                    self._put_in_parts(target, body, condition)
        except _Exists:
            return False
        return True

    def _put_in_parts(self, target: dict[str, str], path: Path, condition: dict[str, str]) -> None:
        """A large file in parallel parts; the object appears with the last request, which carries the condition."""
        client = self._client()
        if condition and self._is_there(target):
            raise _Exists
        upload = {**target, "UploadId": client.create_multipart_upload(**target)["UploadId"]}
        try:
            parts = self._send_parts(upload, path)
            client.complete_multipart_upload(**upload, **condition, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(BotoCoreError, ClientError):  # the first error counts; a bucket's lifecycle rule ends what is left
                client.abort_multipart_upload(**upload)
            raise

    def _send_parts(self, upload: dict[str, str], path: Path) -> Sequence[dict[str, Any]]:
        size = path.stat().st_size
        part_bytes = max(_PART_BYTES, -(-size // _MOST_PARTS))

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek(number * part_bytes)
                answer = self._client().upload_part(**upload, PartNumber=number + 1, Body=file.read(part_bytes))
            return {"PartNumber": number + 1, "ETag": answer["ETag"]}

        with ThreadPoolExecutor(_PARALLEL_PARTS, thread_name_prefix="upload") as pool:
            try:
                return list(pool.map(send, range(-(-size // part_bytes))))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _is_there(self, target: dict[str, str]) -> bool:
        """A look that saves sending a large file in vain."""
        try:
            self._client().head_object(**target)
        except ClientError as e:
            if e.response["Error"]["Code"] in _ABSENT:
                return False
            raise
        return True

    # ---- reading

    def _download(self, key: str, max_bytes: int | None, use: Callable[[Iterator[bytes]], _T]) -> _T:
        with self._s3_errors(key):
            answer = self._client().get_object(Bucket=self._bucket, Key=self._full(key))
            try:
                announced = answer.get("ContentLength", max_bytes)
                check_size(self._name(key), announced or 0, max_bytes)
                return use(_bounded(answer["Body"], self._name(key), max_bytes if announced is None else announced))
            finally:
                answer["Body"].close()

    # ---- connection

    def _client(self) -> Any:
        """The client of this process: connections must not be shared across a fork."""
        with self._lock:
            if self._client_of is None or self._client_of[0] != os.getpid():
                client = self._connect()
                self._client_of = (os.getpid(), client)
                weakref.finalize(self, client.close)
            return self._client_of[1]

    def _connect(self) -> Any:
        session = boto3.session.Session()
        # a server that is not AWS is addressed by path: its certificate and DNS rarely cover bucket.host
        style = Config(s3={"addressing_style": "path"}) if self._endpoint_url else Config()
        try:
            proxies = Config(proxies=proxies_for(self._endpoint_url or "https://s3.amazonaws.com"))
            client: Any = session.client(
                "s3", endpoint_url=self._endpoint_url, region_name=session.region_name or "us-east-1", config=_CONFIG.merge(style).merge(proxies))
            client._endpoint.http_session = _BoundedSession(client._endpoint.http_session)
        except ValueError as e:
            raise ConfigError(f"store endpoint_url {self._endpoint_url!r}: {e}; https://host or http://host:port expected") from e
        if self._endpoint_url:  # AWS redirects where a bucket is in another region, which boto3 follows
            client.meta.events.register_first("before-parse.s3.*", partial(_require_s3, self._endpoint_url))
        return client

    def _copies(self) -> Path:
        """This process's folder of copies, removed with it."""
        with self._lock:
            if self._copies_of is None or self._copies_of[0] != os.getpid():
                folder = Path(tempfile.mkdtemp(prefix="fedhelp-store-"))
                self._copies_of = (os.getpid(), folder)
                weakref.finalize(self, _remove, folder, os.getpid())
            return self._copies_of[1]

    def _full(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _name(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    # ---- errors

    def _patiently(self, action: Callable[[], _T]) -> _T:
        """`action`, again if another write of the same object was in flight or the connection broke inside a body."""
        for attempt in range(_TRIES):
            try:
                return action()
            except _Again:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    @contextmanager
    def _s3_errors(self, key: str) -> Iterator[None]:
        """boto3's errors as errors of our own, one sentence each."""
        where = f"{self._name(key)} at {self._endpoint_url or 'AWS'}"
        try:
            yield
        except ClientError as e:
            raise _error_for(e, where, self._bucket) from e
        except (NoCredentialsError, PartialCredentialsError) as e:
            raise AccessDenied(f"{where}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this pod a role") from e
        except (ParamValidationError, NoRegionError) as e:
            raise ConfigError(f"{where}: the store's url is not usable ({first_line(e)})") from e
        except (ConnectTimeoutError, EndpointConnectionError, SSLError) as e:  # tried several times by boto3 already
            if (why := untrusted(e, bundle="AWS_CA_BUNDLE")) is not None:
                raise ConfigError(f"{where}: {why}") from e
            raise StoreUnavailable(f"{where}: not reached ({first_line(e)}); check the endpoint and the network, then try again") from e
        except (HTTPError, OSError) as e:
            if isinstance(e, OSError) and e.filename is not None:  # a local file's trouble, e.g. no space for a copy
                raise
            raise _Again(f"{where}: the connection broke off ({first_line(e)}); check the network and try again") from e
        except BotoCoreError as e:
            raise _Again(f"{where}: the answer could not be used ({first_line(e)}); try again") from e


class _BoundedSession:
    """botocore's HTTP session, whose answers end: it would read one that is no object to its last byte, however many follow."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def send(self, request: Any) -> Any:
        """The answer to `request`; what is not streamed is read here."""
        streamed, request.stream_output = request.stream_output, True
        answer = self._session.send(request)
        if not streamed:
            answer._content = b"".join(_bounded(answer.raw, request.url.partition("?")[0], _LARGEST_ANSWER))
        return answer

    def close(self) -> None:
        """As botocore's."""
        self._session.close()


class _Again(StoreUnavailable):
    """Worth another try at once."""


class _Exists(Exception):
    """The condition of a conditional write did not hold."""


def _error_for(e: ClientError, where: str, bucket: str) -> FedHelpError | _Exists:
    code = str(e.response.get("Error", {}).get("Code", ""))
    status = int(e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{code}: {e.response.get('Error', {}).get('Message', '')}"[:200]
    if code == "PreconditionFailed" or status == 412:
        return _Exists()
    if code == "ConditionalRequestConflict" or (status == 409 and code == "OperationAborted"):
        return _Again(f"{where}: another write of the same object is in flight ({said}); try again")
    if code == "NoSuchBucket":
        return ConfigError(f"{where}: bucket {bucket!r} does not exist; create it, or correct the store's url")
    if code in _ABSENT:
        return NotFound(f"{where}: no such object")
    if code in _UNKNOWN or status == 501:
        return ConfigError(
            f"{where}: the server does not implement this request ({said}); FedHelp needs conditional writes (If-None-Match: *) and multipart"
            " uploads: upgrade the server, or use another")
    skew = skew_of(e.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))
    if code in _CLOCK or (status in (400, 401, 403) and skew is not None and abs(skew) > LARGEST_SKEW):
        return ConfigError(f"{where}: {clock_is_off('the store', skew)} ({said})")
    if code == "SignatureDoesNotMatch":
        return AccessDenied(
            f"{where}: the signature does not match ({said}); correct AWS_SECRET_ACCESS_KEY, or find the proxy that changes requests on their way")
    if code in _FULL or status == 507:
        return StorageFull(f"{where}: no space left ({said}); free some or raise the quota, then run again")
    if code in _DENIED or status in (401, 403):
        return AccessDenied(
            f"{where}: access denied ({said}); check the credentials and their rights on this prefix"
            " (get, put, delete, list: without list, absent objects look denied)")
    if code in _BUSY or status >= 500 or status == 429:
        return StoreUnavailable(f"{where}: the server cannot answer now ({said}); try again later")
    if status in (301, 307, 400) and code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return ConfigError(f"{where}: the bucket is in another region ({said}); set AWS_REGION")
    return PermanentError(f"{where}: refused ({said}, HTTP {status})")


def _require_s3(endpoint_url: str, response_dict: Mapping[str, Any], operation_model: Any, **_: object) -> None:
    """Nothing where an S3 server may have answered so.

    Raises:
        ConfigError: a web page answers, such as the login page that stands before the server.
    """
    status, body = int(response_dict["status_code"]), response_dict["body"]
    if status == 500 and isinstance(body, bytes) and b"500" not in body[:4096]:
        status = 200  # what boto3 turned into 500, for it is no XML; a gateway's own page names its code
    if status < 300 and operation_model.name in ("GetObject", "HeadObject"):  # the object may be a page
        return
    page = page_instead(status, response_dict["headers"], body if isinstance(body, bytes) else b"")
    if page is not None:
        raise ConfigError(
            f"{endpoint_url}: {page} answers instead of an S3 server; give the address of the S3 API, not of its console or of a login page")


def _bounded(body: BinaryIO, where: str, most: int | None) -> Iterator[bytes]:
    """The pieces of an answer, which must end: after `most` bytes, and in time."""
    started, size = time.monotonic(), 0
    while piece := body.read(_COPY_BYTES):
        size += len(piece)
        if most is not None and size > most:
            raise PermanentError(f"{where}: the answer goes on after {most} bytes; it is not what it should be")
        yield piece
        seconds = time.monotonic() - started
        if seconds > _PATIENCE_S + size / _SLOWEST:
            raise StoreUnavailable(f"{where}: {size} bytes in {seconds:.0f} s, too slow to wait for; check the network and try again")


def _save(pieces: Iterator[bytes], path: Path) -> None:
    """Write what arrives; trouble with this machine's disk is no trouble with the connection."""
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            with disk_errors(path, _COPY):
                write_all(file, piece)


def _remove(folder: Path, owner: int) -> None:
    """Remove a folder of copies, unless this is a forked child of its owner."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
