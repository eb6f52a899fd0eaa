"""One conformance suite over every kind of store, then what is particular to each."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedhelp_core.errors import AccessDenied, ConfigError, NotFound, PermanentError, StorageFull, StoreUnavailable
from fedhelp_core.store import s3 as store_s3
from fedhelp_core.store.base import Store, check_key
from fedhelp_core.store.local import LocalStore
from fedhelp_core.store.open import open_store
from fedhelp_core.store.waiting import Poller, wait_for
from tests.http_server import LOGIN_PAGE, answering

Open = Callable[[], Store]


class TestEveryStore:
    def test_an_object_put_is_read_back(self, store: Store) -> None:
        assert store.put_new("runs/a/x.json", b"hello")
        assert store.get("runs/a/x.json") == b"hello"
        assert store.size("runs/a/x.json") == 5

    def test_the_second_writer_is_told_so_and_changes_nothing(self, store: Store) -> None:
        assert store.put_new("k", b"first") is True
        assert store.put_new("k", b"second") is False
        assert store.get("k") == b"first"

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        assert store.put_new("empty", b"")
        assert store.size("empty") == 0
        assert store.get("empty", 0) == b""
        assert store.put_new("empty", b"x") is False

    def test_put_replaces(self, store: Store) -> None:
        store.put("progress", b"1")
        store.put("progress", b"22")
        assert store.get("progress") == b"22"

    def test_a_file_can_be_put(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "body").write_bytes(b"from a file")
        assert store.put_new("k", tmp_path / "body")
        (tmp_path / "body").write_bytes(b"changed later")
        assert store.get("k") == b"from a file"

    def test_a_file_given_away_becomes_the_object(self, store: Store) -> None:
        with store.scratch_file() as path:
            path.write_bytes(b"average")
            assert store.give("deep/er/k", path)
            assert not store.give("deep/er/k", path)
        assert not path.exists()
        assert store.get("deep/er/k") == b"average"

    def test_absent_objects(self, store: Store) -> None:
        assert store.size("nothing/here") is None
        store.delete("nothing/here")
        with pytest.raises(NotFound, match="nothing/here"):
            store.get("nothing/here")
        with pytest.raises(NotFound):
            store.fetch("nothing/here")

    def test_too_large_an_object_is_not_read(self, store: Store) -> None:
        store.put_new("k", b"12345")
        assert store.get("k", 5) == b"12345"
        for read in (store.get, store.fetch):
            with pytest.raises(PermanentError, match="holds 5 bytes, at most 4 expected"):
                read("k", 4)

    def test_fetch_gives_a_local_file_and_release_leaves_the_object(self, store: Store) -> None:
        store.put_new("a/b.safetensors", b"weights")
        path = store.fetch("a/b.safetensors", 7)
        assert path.read_bytes() == b"weights"
        assert store.fetch("a/b.safetensors") == path
        store.release(path)
        assert store.get("a/b.safetensors") == b"weights"
        assert store.fetch("a/b.safetensors").read_bytes() == b"weights"

    def test_list_is_sorted_and_takes_any_prefix(self, store: Store) -> None:
        for key in ("r/2/b.json", "r/10/a.json", "r/2/a.json", "s/x"):
            store.put_new(key, b"")
        assert store.list("r/") == ["r/10/a.json", "r/2/a.json", "r/2/b.json"]
        assert store.list("r/2/a") == ["r/2/a.json"]
        assert store.list("") == ["r/10/a.json", "r/2/a.json", "r/2/b.json", "s/x"]
        assert store.list("absent/") == []

    def test_a_deleted_object_is_gone_and_can_be_written_again(self, store: Store) -> None:
        store.put_new("k", b"1")
        store.delete("k")
        assert store.size("k") is None
        assert store.put_new("k", b"2")

    def test_what_one_writes_another_sees(self, open_again: Open) -> None:
        open_again().put_new("k", b"1")
        assert open_again().get("k") == b"1"

    @pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../b", "..", "a//b", "a/", "a\0b", "a/./b", "a\nb", "x" * 1025, "a\\b"])
    def test_what_is_no_key_is_refused_everywhere(self, store: Store, key: str) -> None:
        for call in (store.get, store.fetch, store.size, store.delete, lambda k: store.put_new(k, b""), lambda k: store.put(k, b"")):
            with pytest.raises(PermanentError, match="object key"):
                call(key)

    def test_present_tells_which_exist(self, store: Store) -> None:
        store.put_new("p/a", b"")
        store.put_new("p/c", b"")
        assert store.present(["p/a", "p/b", "p/c"], prefix="p/") == {"p/a", "p/c"}
        assert store.present(["p/b"], prefix="p/") == set()

    def test_the_probe_is_content_and_leaves_nothing(self, store: Store) -> None:
        store.probe()
        assert store.list("") == []

    def test_the_probe_removes_the_folders_that_it_made_and_the_store_goes_on(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "data" / "store")
        store.probe()
        assert list(tmp_path.iterdir()) == []
        assert store.put_new("runs/a", b"1") and store.get("runs/a") == b"1"
        store.probe()
        assert store.get("runs/a") == b"1"

    def test_of_eight_threads_exactly_one_writes(self, open_again: Open) -> None:
        start = threading.Barrier(8)

        def race(number: int) -> bool:
            own = open_again()
            own.size("warm")
            start.wait()
            return own.put_new("k", str(number).encode())

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(race, range(8)))
        assert won.count(True) == 1
        assert open_again().get("k") == str(won.index(True)).encode()


def _write_repeatedly(root: str, number: int, start: float, outcome: multiprocessing.Queue[tuple[int, list[int]]]) -> None:
    store = LocalStore(Path(root), durable=False)
    while time.time() < start:
        pass
    body = bytes([number]) * 300_000
    outcome.put((number, [turn for turn in range(30) if store.put_new(f"turn/{turn}", body)]))


def test_of_eight_processes_exactly_one_writes_and_no_reader_sees_a_part(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    outcome: multiprocessing.Queue[tuple[int, list[int]]] = context.Queue()
    start = time.time() + 0.3
    writers = [context.Process(target=_write_repeatedly, args=(str(tmp_path), n, start, outcome)) for n in range(8)]
    for writer in writers:
        writer.start()
    store, seen = LocalStore(tmp_path), 0
    while any(writer.is_alive() for writer in writers) and seen < 30:
        if store.size(f"turn/{seen}") is not None:
            body = store.get(f"turn/{seen}")
            assert len(body) == 300_000
            assert len(set(body)) == 1
            seen += 1
    won = dict(outcome.get(timeout=10) for _ in writers)
    for writer in writers:
        writer.join(10)
    assert sorted(turn for turns in won.values() for turn in turns) == list(range(30))
    for number, turns in won.items():
        assert all(store.get(f"turn/{turn}")[0] == number for turn in turns)


class TestUrls:
    def test_a_plain_folder_and_its_file_url_are_the_same_store(self, tmp_path: Path) -> None:
        folder = tmp_path / "with space"
        open_store(str(folder)).put_new("k", b"1")
        assert open_store(f"file://{str(folder).replace(' ', '%20')}").get("k") == b"1"

    @pytest.mark.parametrize("url", ["", "ftp://host/x", "gs://bucket", "file://host/x", "s3://", "s3:///x"])
    def test_other_urls_are_config_errors(self, url: str) -> None:
        with pytest.raises(ConfigError, match=r"expected|three slashes"):
            open_store(url)

    def test_opening_reaches_for_nothing(self, tmp_path: Path) -> None:
        open_store(str(tmp_path / "not there yet"))
        open_store("s3://bucket/x", endpoint_url="http://127.0.0.1:1")
        assert list(tmp_path.iterdir()) == []


class TestLocalStore:
    def test_unfinished_objects_are_hidden_and_swept_when_old(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        store.put_new("k", b"1")
        fresh, old = store.scratch / ".fresh.tmp", store.scratch / ".old.tmp"
        fresh.touch()
        old.touch()
        os.utime(old, (0, 0))
        again = LocalStore(tmp_path)
        assert again.list("") == ["k"]
        again.put_new("l", b"")
        assert fresh.exists()
        assert not old.exists()
        with pytest.raises(PermanentError, match="object key"):
            store.get(".scratch/.fresh.tmp")

    def test_a_killed_writer_leaves_no_object(self, tmp_path: Path) -> None:
        child = os.fork()
        if child == 0:
            store = LocalStore(tmp_path)
            with store._complete(b"complete, but not linked yet"):
                os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        assert LocalStore(tmp_path).list("") == []

    def test_a_folder_is_no_object(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        store.put_new("a/b", b"")
        assert store.size("a") is None
        with pytest.raises(NotFound):
            store.get("a")

    @pytest.mark.parametrize(("number", "expected"), [
        (errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EROFS, AccessDenied), (errno.EACCES, AccessDenied),
        (errno.EIO, StoreUnavailable), (errno.ESTALE, StoreUnavailable), (errno.ENAMETOOLONG, PermanentError),
    ])
    def test_errors_of_the_system_have_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]) -> None:
        store = LocalStore(tmp_path)
        store.put_new("warm", b"")

        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", fail)
        with pytest.raises(expected, match=f"{tmp_path}/k|cannot be an object"):
            store.put_new("k", b"1")
        assert list(store.scratch.iterdir()) == []

    def test_a_file_system_without_hard_links_is_said_to_be_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.ENOTSUP, "not supported")

        monkeypatch.setattr(os, "link", fail)
        with pytest.raises(ConfigError, match="no hard links"):
            LocalStore(tmp_path).put_new("k", b"1")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_read_only_folder_is_access_denied(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(AccessDenied):
            LocalStore(tmp_path).put_new("k", b"1")

    def test_a_full_disk_is_storage_full(self) -> None:
        if not os.access("/dev/full", os.W_OK):
            pytest.skip("no /dev/full here")
        from fedhelp_core.weights.file import write_weights
        with pytest.raises(StorageFull):
            write_weights(Path("/dev/full"), {}, "net")


class TestS3Store:
    def test_a_large_file_goes_up_in_parts_and_only_once(self, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_s3, "_WHOLE_BYTES", 6 * 2**20)
        monkeypatch.setattr(store_s3, "_PART_BYTES", 5 * 2**20)
        body = os.urandom(12 * 2**20 + 1)
        (tmp_path / "large").write_bytes(body)
        store = open_store(f"s3://federation/{tmp_path.name}", endpoint_url=s3_endpoint)
        assert store.put_new("large", tmp_path / "large") is True
        assert store.put_new("large", tmp_path / "large") is False
        assert store.fetch("large").read_bytes() == body
        monkeypatch.setattr(store_s3.S3Store, "_is_there", lambda *_: False)
        assert store.put_new("large", tmp_path / "large") is False  # decided by the condition of the last request

    def test_two_prefixes_do_not_see_each_other(self, s3_endpoint: str) -> None:
        one, two = (open_store(f"s3://federation/{name}/", endpoint_url=s3_endpoint) for name in ("one", "two"))
        one.put_new("k", b"1")
        assert two.list("") == []
        assert two.size("k") is None

    def test_a_bucket_that_is_not_there_is_a_config_error(self, s3_endpoint: str) -> None:
        store = open_store("s3://no-such-bucket", endpoint_url=s3_endpoint)
        with pytest.raises(ConfigError, match="bucket 'no-such-bucket' does not exist"):
            store.put_new("k", b"1")

    def test_an_unreachable_server_is_named(self, s3_endpoint: str) -> None:
        store = open_store("s3://bucket", endpoint_url="http://127.0.0.1:9")
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9"):
            store.get("k")

    def test_missing_credentials_are_access_denied(self, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
            open_store("s3://federation", endpoint_url=s3_endpoint).get("k")

    @pytest.mark.parametrize(("status", "code", "expected"), [
        (403, "InvalidAccessKeyId", AccessDenied), (403, "SignatureDoesNotMatch", AccessDenied), (403, "403", AccessDenied),
        (503, "SlowDown", StoreUnavailable), (500, "InternalError", StoreUnavailable), (507, "XMinioStorageFull", StorageFull),
        (404, "NoSuchBucket", ConfigError), (404, "NoSuchKey", NotFound), (301, "PermanentRedirect", ConfigError),
        (400, "InvalidRequest", PermanentError),
        (409, "ConditionalRequestConflict", StoreUnavailable),
    ])
    def test_answers_of_the_server_have_names(self, status: int, code: str, expected: type[Exception]) -> None:
        from botocore.exceptions import ClientError
        answer = ClientError({"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")  # type: ignore[typeddict-item]
        found = store_s3._error_for(answer, "s3://b/k at http://host", "b")
        assert isinstance(found, expected)
        assert "http://host" in str(found)

    @pytest.mark.parametrize(("status", "code", "clock_ahead", "kind", "words"), [
        (501, "NotImplemented", 0, ConfigError, "needs conditional writes"),
        (403, "RequestTimeTooSkewed", 1200, ConfigError, "clock is 1[12][0-9]{2} s behind the store"),
        (403, "RequestTimeTooSkewed", -1200, ConfigError, "clock is 1[12][0-9]{2} s ahead of the store"),
        (403, "RequestTimeTooSkewed", 0, ConfigError, "clock differs from that of the store"),
        (403, "SignatureDoesNotMatch", 1200, ConfigError, "set the node's time"),
        (403, "AccessDenied", 7200, ConfigError, "set the node's time"),
        (400, "RequestExpired", 0, ConfigError, "set the node's time"),
        (403, "SignatureDoesNotMatch", 0, AccessDenied, "the signature does not match .* AWS_SECRET_ACCESS_KEY"),
        (403, "AccessDenied", 30, AccessDenied, "check the credentials"),
        (404, "NoSuchKey", 7200, NotFound, "no such object"),  # whoever answers that took the signature
    ])
    def test_what_a_server_cannot_do_and_a_clock_that_is_off_are_told_as_such(
        self, s3_endpoint: str, status: int, code: str, clock_ahead: float, kind: type[Exception], words: str,
    ) -> None:
        said = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
        with answering(status, said, clock_ahead=clock_ahead) as endpoint:
            store = open_store("s3://bucket", endpoint_url=endpoint)
            with pytest.raises(kind, match=words):
                store.get("k")
            if status == 501:
                with pytest.raises(kind, match=words):
                    store.probe()

    @pytest.mark.parametrize(("status", "location", "body", "words"), [
        (200, None, LOGIN_PAGE, "a web page titled 'Log in to dex'"),
        (403, None, LOGIN_PAGE, "a web page titled 'Log in to dex'"),
        (302, "/dex/auth?state=secret", b"", r"a redirect to /dex/auth \(HTTP 302\)"),
        (302, "https://login.example/oidc?nonce=1", LOGIN_PAGE, r"a redirect to https://login\.example/oidc \(HTTP 302\)"),
    ])
    def test_a_login_page_before_the_store_is_told_as_such(
        self, s3_endpoint: str, status: int, location: str | None, body: bytes, words: str,
    ) -> None:
        with answering(status, body, {} if location is None else {"Location": location}) as endpoint:
            store = open_store("s3://bucket", endpoint_url=endpoint)
            with pytest.raises(ConfigError, match=f"{words}.* answers instead of an S3 server"):
                store.probe()
            with pytest.raises(ConfigError, match=words):
                store.list("")

    def test_a_gateways_page_about_a_store_that_is_away_is_worth_another_try(self, s3_endpoint: str) -> None:
        with answering(502, b"<html><body>502 Bad Gateway</body></html>") as endpoint, pytest.raises(StoreUnavailable):
            open_store("s3://bucket", endpoint_url=endpoint).list("")

    def test_an_object_may_be_a_web_page(self, s3_endpoint: str) -> None:
        store = open_store("s3://federation/pages", endpoint_url=s3_endpoint)
        store.put_new("report.html", LOGIN_PAGE)
        assert store.get("report.html") == LOGIN_PAGE

    def test_a_write_in_flight_is_waited_for(self, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        store = store_s3.S3Store("s3://federation/flight", endpoint_url=s3_endpoint)
        answers = iter([store_s3._Again("in flight"), None])
        plain = store._put

        def busy_once(*arguments: object) -> bool:
            if (answer := next(answers)) is not None:
                raise answer
            return plain(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "_put", busy_once)
        assert store.put_new("k", b"1")

    def test_a_server_that_overwrites_is_found_out(self, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        store = store_s3.S3Store("s3://federation/old", endpoint_url=s3_endpoint)
        plain = store._put
        monkeypatch.setattr(store, "_put", lambda key, body, _condition: plain(key, body, {}))
        with pytest.raises(ConfigError, match="does not honour conditional writes"):
            store.probe()


class TestWaiting:
    def test_what_is_there_is_found_without_a_pause(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Poller, "pause", lambda *_, **__: pytest.fail("paused"))
        assert wait_for(LocalStore(tmp_path), lambda: "found") == "found"

    def test_the_timeout_gives_none(self, tmp_path: Path) -> None:
        started = time.monotonic()
        assert wait_for(LocalStore(tmp_path), lambda: None, timeout=0.05) is None
        assert 0.05 <= time.monotonic() - started < 1

    def test_pauses_grow_from_1_to_20_ms_and_start_again_after_news(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now, slept = [0.0], []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            now[0] += seconds

        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(time, "sleep", sleep)
        poller = Poller(LocalStore(tmp_path))
        while now[0] < 1:
            poller.pause()
        assert slept[0] == pytest.approx(0.001)
        assert slept[-1] == pytest.approx(0.020)
        assert slept == sorted(slept)
        assert len(slept) < 100
        poller.reset()
        poller.pause(until=now[0] + 0.0005)
        assert slept[-1] == pytest.approx(0.0005)


def test_check_key_gives_the_key_back() -> None:
    assert check_key("runs/r-1/rounds/1/global-00ff.safetensors") == "runs/r-1/rounds/1/global-00ff.safetensors"
