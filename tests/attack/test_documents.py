"""A silo's documents with a fault in any place: what is read is what a silo may write, or one sentence; never another exception."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from fedhelp_core.errors import PermanentError
from fedhelp_core.protocol.documents import Document, dump, parse
from tests.core.protocol.test_documents import DOCUMENTS, KEY, fields

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**53 + 1, 10**400, -(10**400), 1e-320, -0.0, math.nan, math.inf, "", " ", "x" * 2**21, "\x1b[2J", "\u202eexe", "a\nb\r",
    "\ud800", "../../etc/passwd", "s3://other/bucket", "2026-01-01T00:00:00", "0001-01-01T00:00:00+23:59", [], {}, [[]], [None] * 1000, {"": 0},
    {"a": {"a": {}}})
RAW = (b"", b"null", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**4, b"{}" * 2, b"1" * 5000, b'{"a":1,"a":2}', b"\xef\xbb\xbf{}", b"NaN",
       b"{" + b" " * 2**20)


def survives(kind: type[Document], body: bytes) -> None:
    """Read, and then a document that can be written and read again; or refused in one line."""
    refusal = ""
    try:
        document = parse(kind, body, KEY)
    except PermanentError as e:
        refusal = str(e)
    else:
        assert parse(kind, dump(document), KEY) is not None
    assert not refusal or (refusal.startswith(KEY) and len(refusal) < 1000 and refusal.isprintable()), refusal[:200]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_any_value_in_any_place(document: Document, tried: Callable[[], None]) -> None:
    for place in fields(json.loads(dump(document))):
        for value in VALUES:
            plain = json.loads(dump(document))
            parent = plain
            for name in place[:-1]:
                parent = parent[name]
            parent[place[-1]] = value
            survives(type(document), json.dumps(plain).encode())
            tried()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_bytes_that_are_no_document(document: Document, tried: Callable[[], None]) -> None:
    for body in RAW:
        survives(type(document), body)
        tried()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: type(document).__name__)
def test_flipped_bytes(document: Document, tried: Callable[[], None]) -> None:
    chance, body = random.Random(7), dump(document)
    for _ in range(300):
        changed = bytearray(body)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.choice([0, 0x22, 0x2C, 0x7B, 0x5B, 0x30, 0x65, 0x2D, chance.randrange(256)])
        survives(type(document), bytes(changed))
        tried()


def test_floats_of_every_bit_pattern(tried: Callable[[], None]) -> None:
    chance = random.Random(7)
    manifest = next(document for document in DOCUMENTS if type(document).__name__ == "UpdateManifest")
    for _ in range(2000):
        (value,) = struct.unpack("<d", chance.randbytes(8))
        plain = json.loads(dump(manifest))
        plain["loss"] = value
        survives(type(manifest), json.dumps(plain).encode())
        tried()
