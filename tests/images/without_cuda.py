"""PyTorch without NVIDIA's libraries, where its index of CPU builds is not reached: called by `torch_index`, for the tests' images alone.

PyPI's PyTorch for Linux is the CUDA build: its libraries name NVIDIA's, so that it does not even load without them, although
nothing of theirs is called on a CPU. The stand-in is one empty library that carries all the missing names. The CPU code is the
same, byte for byte, so models come out bit-identical to those of the full image's CPU path. A program that called CUDA would crash.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STAND_IN = "libfedhelp_no_cuda.so"
_NVIDIA = ("libcu", "libnccl", "libnv")
_DRIVER = "libcuda.so.1"  # comes with a GPU's driver, never with a package
_DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 1, 4, 5, 6, 10, 11, 14
_DT_VERSYM, _DT_VERDEF, _DT_VERDEFNUM = 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFD
_SHT_DYNAMIC, _SHT_RELA, _SHT_DYNSYM, _SHT_VERNEED, _SHT_VERSYM = 6, 4, 11, 0x6FFFFFFE, 0x6FFFFFFF
_RELOCATIONS = (1, 6, 7)  # R_X86_64_64, GLOB_DAT, JUMP_SLOT: Python loads libraries so that all of these must be found at once
_STRONG = 1  # a symbol that must be found
_ELSEWHERE = ("_", "Py")  # found in the C and C++ libraries and in the interpreter


@dataclass(frozen=True)
class Library:
    """What an ELF library wants from others."""

    needed: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    """Library -> version names that it must define."""
    wanted: frozenset[tuple[str, str]]
    """(symbol, version name or '') of what others must define."""
    defined: frozenset[str]
    """Symbols that it defines."""


def read_library(path: Path) -> Library:
    """Read a 64-bit little-endian ELF library's dynamic tables."""
    content = path.read_bytes()
    if content[:6] != b"\x7fELF\x02\x01":
        return Library((), {}, frozenset(), frozenset())
    start, entry, count = struct.unpack_from("<Q", content, 40)[0], *struct.unpack_from("<HH", content, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", content, start + entry * i) for i in range(count)]

    def of(kind: int) -> Iterator[tuple[int, ...]]:
        return (section for section in sections if section[1] == kind)

    def text(section: tuple[int, ...], offset: int) -> str:
        at = sections[section[6]][4] + offset
        return content[at:content.index(b"\0", at)].decode()

    needed = tuple(
        text(section, value) for section in of(_SHT_DYNAMIC)
        for tag, value in struct.iter_unpack("<QQ", content[section[4]:section[4] + section[5]]) if tag == _DT_NEEDED)
    versions: dict[str, list[str]] = {}
    named: dict[int, str] = {}
    for section in of(_SHT_VERNEED):
        at = section[4]
        for _ in range(section[7]):
            _, auxiliaries, file, auxiliary, following = struct.unpack_from("<HHIII", content, at)
            at_auxiliary = at + auxiliary
            for _ in range(auxiliaries):
                _, _, index, name, next_auxiliary = struct.unpack_from("<IHHII", content, at_auxiliary)
                versions.setdefault(text(section, file), []).append(text(section, name))
                named[index] = text(section, name)
                at_auxiliary += next_auxiliary
            at += following
    symbols, symbol_versions = next(of(_SHT_DYNSYM)), next(of(_SHT_VERSYM))
    wanted, defined = set(), set()
    relocated = {
        information >> 32 for section in of(_SHT_RELA)
        for _, information, _ in struct.iter_unpack("<QQq", content[section[4]:section[4] + section[5]]) if information & 0xFFFFFFFF in _RELOCATIONS}
    for number in range(1, symbols[5] // 24):
        name, information, _, defined_in = struct.unpack_from("<IBBH", content, symbols[4] + 24 * number)
        if defined_in:
            defined.add(text(symbols, name))
        elif number in relocated and information >> 4 == _STRONG:
            version = struct.unpack_from("<H", content, symbol_versions[4] + 2 * number)[0] & 0x7FFF
            wanted.add((text(symbols, name), named.get(version, "")))
    return Library(needed, {file: tuple(names) for file, names in versions.items()}, frozenset(wanted), frozenset(defined))


def empty_library(name: str, versions: list[str], symbols: list[tuple[str, str]]) -> bytes:
    """An ELF library called `name` that defines `versions`, and `symbols` (with their version name, or '') as eight zero bytes."""
    strings = bytearray(b"\0")

    def string(value: str) -> int:
        strings.extend(value.encode() + b"\0")
        return len(strings) - 1 - len(value.encode())

    names = [name, *versions]
    definitions = b"".join(
        struct.pack("<HHHHIIIII", 1, int(i == 0), i + 1, 1, _elf_hash(value), 20, 0 if i + 1 == len(names) else 28, string(value), 0)
        for i, value in enumerate(names))
    symbol_names = [string(symbol) for symbol, _ in symbols]
    count = len(symbols) + 1
    symbol_versions = struct.pack(f"<{count}H", 0, *(versions.index(version) + 2 if version else 1 for _, version in symbols))
    chain = struct.pack(f"<{3 + count}I", 1, count, int(count > 1), 0, *(i + 1 if i + 1 < count else 0 for i in range(1, count)))
    soname = string(name)

    tables, offsets, at = [], [], 64 + 3 * 56
    for table in (bytes(strings), b"\0" * (24 * count), symbol_versions, definitions, chain, b"\0" * 8):
        padded = table + b"\0" * (-len(table) % 8)
        tables.append(padded)
        offsets.append(at)
        at += len(padded)
    at_strings, at_symbols, at_versions, at_definitions, at_chain, at_zeros = offsets
    tables[1] = b"\0" * 24 + b"".join(struct.pack("<IBBHQQ", symbol, 0x11, 0, 1, at_zeros, 8) for symbol in symbol_names)
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in (
        (_DT_SONAME, soname), (_DT_HASH, at_chain), (_DT_STRTAB, at_strings), (_DT_SYMTAB, at_symbols), (_DT_STRSZ, len(strings)), (_DT_SYMENT, 24),
        (_DT_VERSYM, at_versions), (_DT_VERDEF, at_definitions), (_DT_VERDEFNUM, len(names)), (0, 0)))
    size = at + len(dynamic)
    header = b"\x7fELF\x02\x01\x01" + b"\0" * 9 + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    segments = b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in (
        (1, 6, 0, 0, 0, size, size, 4096), (2, 6, at, at, at, len(dynamic), len(dynamic), 8), (0x6474E551, 6, 0, 0, 0, 0, 0, 16)))
    return header + segments + b"".join(tables) + dynamic


def _elf_hash(name: str) -> int:
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high & 0xFFFFFFFF
    return value


def put_stand_in(folder: Path) -> list[str]:
    """Write the stand-in beside the libraries of `folder`, PyTorch's own, under every name that is missing; those names."""
    paths = sorted(folder.rglob("*.so*"))
    libraries, present = [read_library(path) for path in paths], {path.name for path in paths}
    missing = sorted({
        name for library in libraries for name in library.needed if name.startswith(_NVIDIA) and name != _DRIVER and name not in present})
    versions = sorted({version for library in libraries for name in missing for version in library.versions.get(name, ())})
    defined = frozenset[str]().union(*(library.defined for library in libraries))
    symbols = sorted(
        (symbol, version) for symbol, version in frozenset[tuple[str, str]]().union(*(library.wanted for library in libraries))
        if version in versions or (not version and symbol not in defined and not symbol.startswith(_ELSEWHERE)))
    for name in missing:
        (folder / name).write_bytes(empty_library(_STAND_IN, versions, symbols))
    return missing
