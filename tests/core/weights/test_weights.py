"""Weights files: same weights same bytes, readable by the safetensors library, and one named error per fault."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from fedhelp_core.errors import NotFound, WeightsError
from fedhelp_core.weights import check as check_module
from fedhelp_core.weights import file as file_module
from fedhelp_core.weights.check import check_weights_file
from fedhelp_core.weights.file import fingerprint, read_header, read_weights, serialize_weights, write_weights
from fedhelp_core.weights.header import Weights, WeightsSpec, numpy_dtype
from fedhelp_core.weights.segments import common_segments

LIMIT = 10**6


def example() -> Weights:
    return {
        "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "layer.bias": np.array([0.5, -0.5], np.float32),
        "norm.batches": np.array(7, np.int64), "half": np.ones(3, np.float16), "empty": np.zeros((0, 4), np.float32), "mask": np.array([True, False]),
    }


SPEC = WeightsSpec.from_weights(example(), "net")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.safetensors"


def written(path: Path) -> Path:
    write_weights(path, example(), "net")
    return path


def check(path: Path, *, spec: WeightsSpec = SPEC, sha256: str | None = None, **more: Any) -> None:
    check_weights_file(path, spec=spec, max_bytes=LIMIT, sha256=sha256, **more)


def parts_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8:8 + length]), content[8 + length:]


def joined(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


class TestWriting:
    def test_what_is_written_is_read_back_as_aligned_arrays_of_their_own(self, path: Path) -> None:
        sha256 = write_weights(path, example(), "net")
        found = read_weights(path, expected=SPEC, max_bytes=LIMIT, sha256=sha256)
        assert found.keys() == example().keys()
        for name, array in example().items():
            assert found[name].dtype == array.dtype
            assert found[name].shape == array.shape
            assert (found[name] == array).all()
            assert found[name].flags.owndata
            assert found[name].flags.aligned
            assert found[name].flags.writeable

    def test_the_safetensors_library_reads_the_file(self, path: Path) -> None:
        write_weights(path, example(), "net")
        found = safetensors.numpy.load_file(path)
        assert all((found[name] == array).all() and found[name].dtype == array.dtype for name, array in example().items())
        with safetensors.safe_open(path, "numpy") as file:
            assert file.metadata() == {"architecture": "net", "fedhelp_format": "1"}

    def test_the_same_weights_give_the_same_bytes_in_any_order_and_memory_layout(self, path: Path) -> None:
        other = dict(reversed(example().items()))
        other["layer.weight"] = np.asfortranarray(other["layer.weight"])
        other["layer.bias"] = other["layer.bias"].astype(">f4")
        assert serialize_weights(other, "net") == serialize_weights(example(), "net")

    def test_file_fingerprint_and_bytes_have_one_hash(self, path: Path) -> None:
        sha256 = write_weights(path, example(), "net")
        assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == fingerprint(example(), "net")
        assert path.read_bytes() == serialize_weights(example(), "net")
        assert fingerprint(example(), "other") != sha256

    def test_every_tensor_starts_aligned(self, path: Path) -> None:
        write_weights(path, example(), "net")
        for entry in read_header(path).tensors:
            assert entry.begin % numpy_dtype(entry.dtype).itemsize == 0

    def test_no_weights_at_all_can_be_written(self, path: Path) -> None:
        write_weights(path, {}, "net")
        assert read_weights(path, expected=WeightsSpec("net", {}), max_bytes=LIMIT, sha256=None) == {}

    @pytest.mark.parametrize("array", [np.zeros(2, np.complex64), np.array(["text"]), np.array([None])])
    def test_what_cannot_travel_is_named(self, path: Path, array: NDArray[Any]) -> None:
        with pytest.raises(WeightsError, match=r"tensor 'odd': dtype .* cannot travel"):
            write_weights(path, {"odd": array}, "net")


class TestSpec:
    def test_what_our_weights_look_like_is_possible(self) -> None:
        SPEC.require_possible()

    @pytest.mark.parametrize(("dtype", "shape"), [
        ("F33", (2,)), ("C64", (2,)), ("F32", (-1,)), ("F32", (2**50,)), ("F32", (2**40, 2**40)), ("F32", (1,) * 33)])
    def test_what_no_file_looks_like_is_refused_and_the_tensor_named(self, dtype: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(WeightsError, match=r"tensor 'odd': (dtype|shape)"):
            WeightsSpec("net", {"odd": (dtype, shape)}).require_possible()


class TestGoodFiles:
    def test_a_good_file_passes(self, path: Path) -> None:
        check(path, sha256=write_weights(path, example(), "net"))

    def test_a_file_of_another_writer_is_refused_though_it_says_the_right_things(self, path: Path) -> None:
        safetensors.numpy.save_file(example(), path, metadata={"fedhelp_format": "1", "architecture": "net", "note": "and more"})
        with pytest.raises(WeightsError, match="not in FedHelp's own bytes"):
            check(path)

    def test_how_far_a_file_lies_is_told_apart_for_what_is_learnt_and_what_is_counted(self, path: Path, tmp_path: Path) -> None:
        names = ("a.weight", "a.running_mean", "a.running_var")
        write_weights(tmp_path / "reference", {name: np.ones(2, np.float32) for name in names}, "net")
        write_weights(path, {name: np.full(2, 1 + n, np.float32) for n, name in enumerate(names, start=1)}, "net")
        spec = WeightsSpec("net", dict.fromkeys(names, ("F32", (2,))))
        found = check_weights_file(path, spec=spec, max_bytes=LIMIT, sha256=None, reference=tmp_path / "reference")
        assert (found.trainable, found.statistics) == pytest.approx((2**0.5, (2 * 4 + 2 * 9)**0.5))

    @pytest.mark.parametrize(("name", "value", "what"), [
        ("a.running_var", np.array([1, -1e-30], np.float32), "a negative variance"),
        ("a.num_batches_tracked", np.array(-1), "a count of -1, which is negative"),
        ("a.num_batches_tracked", np.array(2**31 + 8), f"a count of {2**31 + 8}, which is negative or grew by more than {2**31} in a round"),
        ("a.num_batches_tracked", np.array(2**63 - 1), f"a count of {2**63 - 1}, which")])
    def test_what_no_batch_norm_counts_is_named(self, path: Path, tmp_path: Path, name: str, value: NDArray[Any], what: str) -> None:
        good: Weights = {"a.running_var": np.array([1, 0], np.float32), "a.num_batches_tracked": np.array(7)}
        spec = WeightsSpec.from_weights(good, "net")
        write_weights(tmp_path / "reference", good, "net")
        write_weights(path, {**good, name: value}, "net")
        with pytest.raises(WeightsError, match=f"tensor '{name}' holds {what}"):
            check(path, spec=spec, reference=tmp_path / "reference")
        write_weights(path, {**good, "a.num_batches_tracked": np.array(2**31 + 7)}, "net")
        check(path, spec=spec, reference=tmp_path / "reference")

    def test_the_norm_is_over_all_floating_tensors_together(self, path: Path, tmp_path: Path) -> None:
        moved = example()
        moved["layer.weight"][0, 0] += 3
        moved["half"][1] += 4
        moved["norm.batches"] += 1000
        write_weights(path, moved, "net")
        write_weights(tmp_path / "reference", example(), "net")
        check(path, reference=tmp_path / "reference", max_norm=5.0)  # √(3² + 4²)
        with pytest.raises(WeightsError, match=r"L2 norm of 5, at most 4\.999"):
            check(path, reference=tmp_path / "reference", max_norm=4.999)

    def test_pieces_do_not_change_the_verdict(self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (check_module, file_module):
            monkeypatch.setattr(module, "CHUNK_BYTES", 8)
        write_weights(tmp_path / "moved", {name: array + array.dtype.type(1) for name, array in example().items()}, "net")
        moved = check_weights_file(tmp_path / "moved", spec=SPEC, max_bytes=LIMIT, sha256=None, reference=written(tmp_path / "plain"))
        assert moved.trainable == pytest.approx((6 + 2 + 3) ** 0.5)
        sha256 = write_weights(path, example(), "net")
        check(path, sha256=sha256, reference=path, max_norm=0.0)
        assert fingerprint(read_weights(path, expected=SPEC, max_bytes=LIMIT, sha256=sha256), "net") == sha256

    def test_files_laid_out_alike_are_read_in_long_runs(self, path: Path, tmp_path: Path) -> None:
        write_weights(path, {f"t{n}": np.zeros(10, np.float32) for n in range(50)}, "net")
        write_weights(tmp_path / "other", {f"t{n}": np.ones(10, np.float32) for n in range(50)}, "net")
        segments = common_segments((read_header(path), read_header(tmp_path / "other")))
        assert [segment.elements for segment in segments] == [500]


def _torch_pickle() -> bytes:
    return pickle.dumps({"weight": [1.0]}, protocol=2) + b"\0" * 100


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", _torch_pickle())
    return buffer.getvalue()


Change = Callable[[dict[str, Any], bytes], bytes]


def _with(name: str, **fields: Any) -> Change:
    return lambda header, data: joined({**header, name: {**header[name], **fields}}, data)


def _metadata(**fields: Any) -> Change:
    return lambda header, data: joined({**header, "__metadata__": {**header["__metadata__"], **fields}}, data)


def _without(name: str) -> Change:
    return lambda header, data: joined({key: value for key, value in header.items() if key != name}, data)


class TestFaults:
    @pytest.mark.parametrize(("content", "message"), [
        (b"", "truncated: 0 bytes"),
        (b"\x10\0\0", "truncated: 3 bytes"),
        ((2**40).to_bytes(8, "little") + b"{}", "header too large: 1099511627776 bytes"),
        ((50).to_bytes(8, "little") + b"{}", "truncated: a header of 50 bytes announced, but the file has 10"),
        (joined(b"not json", b""), "header is not JSON"),
        (joined(b"\xff\xfe", b""), "header is not JSON"),
        (joined(b"[" * 100_000, b""), "header is not JSON|header too large"),
        (joined(b"{" + b'"a":' + b"9" * 5000 + b"}", b""), "header is not JSON|header too large"),
        (joined(b'{"a": {}, "a": {}}', b""), "field 'a' is used twice"),
        (joined([1], b""), "header is not a JSON object, got list"),
        (joined({"__metadata__": {"x": 1}}, b""), "__metadata__ should map names to texts"),
        (_torch_pickle(), "is a pickle .* safetensors expected"),
        (pickle.dumps([1, 2, 3], protocol=0) * 10, "is a pickle"),
        (_zip(), "is a zip archive .* torch checkpoint"),
        (b"\x93NUMPY\x01\x00" + b"v" * 100, "is a NumPy or HDF5 file"),
    ], ids=lambda value: value if isinstance(value, str) else "")  # not by content: an archive's holds the time
    def test_what_is_no_weights_file_is_named(self, path: Path, content: bytes, message: str) -> None:
        path.write_bytes(content)
        for read in (check, lambda p: read_weights(p, expected=None, max_bytes=LIMIT, sha256=None)):
            with pytest.raises(WeightsError, match=message) as caught:
                read(path)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("change", "message"), [
        (_metadata(fedhelp_format="2"), "format version 2, this FedHelp reads up to 1"),
        (_metadata(fedhelp_format="one"), "fedhelp_format is 'one', a number expected"),
        (_without("__metadata__"), "no fedhelp_format in its metadata"),
        (_metadata(architecture="resnet8"), "weights of architecture 'resnet8', 'net' expected"),
        (_with("layer.bias", dtype="BF16"), "tensor 'layer.bias': dtype 'BF16', one of F64"),
        (_with("layer.bias", dtype=3), "dtype 3"),
        (_with("layer.bias", shape=[-2]), "tensor 'layer.bias': shape"),
        (_with("layer.bias", shape=[True, 2]), "tensor 'layer.bias': shape"),
        (_with("layer.bias", shape=[1] * 33), "at most 32 sizes"),
        (_with("layer.bias", shape=[2.0]), "tensor 'layer.bias': shape"),
        (_with("layer.bias", shape=[3]), r"data_offsets span 8 bytes, but F32 \[3\] takes 12"),
        (_with("empty", shape=[0, 2**47, 2**47]), "tensor 'empty': shape .* is too large"),
        (_with("layer.bias", data_offsets=[0]), "a begin and an end expected"),
        (_with("layer.bias", data_offsets=[0, 2**70]), "a begin and an end expected"),
        (_with("layer.bias", extra=1), "dtype, shape and data_offsets expected"),
        (_with("layer.bias", data_offsets=[0, 8]), "overlaps"),
        (lambda header, data: joined(header, data + b"more"), "4 bytes follow the last tensor"),
        (lambda header, data: joined(header, data[:-1]), "truncated"),
        (_without("half"), "leaves a gap after"),
    ])
    def test_a_forged_header_is_named(self, path: Path, change: Change, message: str) -> None:
        path.write_bytes(change(*parts_of(serialize_weights(example(), "net"))))
        with pytest.raises(WeightsError, match=message) as caught:
            check(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("weights", "message"), [
        ({"layer.bias": None}, "tensor 'layer.bias' missing"),
        ({"layer.bias": None, "half": None}, "tensors 'half', 'layer.bias' missing"),
        ({f"extra{n}": np.zeros(1) for n in range(5)}, "tensors 'extra0', 'extra1', 'extra2' and 2 more not expected"),
        ({"layer.bias": np.zeros(2, np.float64)}, r"tensor 'layer.bias': F32 \[2\] expected, got F64 \[2\]"),
        ({"layer.bias": np.zeros(3, np.float32)}, r"F32 \[2\] expected, got F32 \[3\]"),
        ({"layer.weight": np.zeros((3, 2), np.float32)}, r"F32 \[2, 3\] expected, got F32 \[3, 2\]"),
        ({"layer.bias": np.array([1, np.nan], np.float32)}, "tensor 'layer.bias' holds a value that is not finite"),
        ({"half": np.array([1, 2, np.inf], np.float16)}, "tensor 'half' holds a value that is not finite"),
        ({"mask": np.array([1, 2], np.uint8).view(np.bool_)}, "tensor 'mask' holds a value"),
    ])
    def test_other_weights_are_named(self, path: Path, weights: dict[str, Any], message: str) -> None:
        changed = {name: array for name, array in {**example(), **weights}.items() if array is not None}
        sha256 = write_weights(path, changed, "net")
        with pytest.raises(WeightsError, match=message):
            check(path, sha256=sha256)

    def test_a_flipped_bit_is_tampering_even_where_it_makes_a_nan(self, path: Path) -> None:
        sha256 = write_weights(path, example(), "net")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        for read in (check, lambda p, sha256: read_weights(p, expected=SPEC, max_bytes=LIMIT, sha256=sha256)):
            with pytest.raises(WeightsError, match=f"tampered with or damaged: sha256 {sha256} expected"):
                read(path, sha256=sha256)

    def test_too_large_a_file_is_not_even_opened_further(self, path: Path) -> None:
        write_weights(path, example(), "net")
        size = path.stat().st_size
        with pytest.raises(WeightsError, match=f"{size} bytes, at most 100"):
            check_weights_file(path, spec=SPEC, max_bytes=100, sha256=None)

    def test_an_absent_file_is_not_found(self, path: Path) -> None:
        with pytest.raises(NotFound, match="no such weights file"):
            check(path)

    def test_an_infinite_distance_is_above_every_bound(self, path: Path, tmp_path: Path) -> None:
        spec = WeightsSpec("net", {"a": ("F64", (1,))})
        write_weights(path, {"a": np.array([1e300])}, "net")
        write_weights(tmp_path / "reference", {"a": np.array([0.0])}, "net")
        with pytest.raises(WeightsError, match="L2 norm of inf"):
            check(path, spec=spec, reference=tmp_path / "reference", max_norm=1e308)

    def test_every_single_damaged_byte_is_noticed(self, path: Path) -> None:
        good = serialize_weights({"a": np.array([1, 2], np.float32)}, "n")
        spec, sha256 = WeightsSpec("n", {"a": ("F32", (2,))}), hashlib.sha256(good).hexdigest()
        for position in range(len(good)):
            for flip in (0x01, 0x80, 0xFF):
                path.write_bytes(good[:position] + bytes([good[position] ^ flip]) + good[position + 1:])
                with pytest.raises(WeightsError):
                    check_weights_file(path, spec=spec, max_bytes=LIMIT, sha256=sha256)

    def test_every_truncation_is_noticed_without_a_hash(self, path: Path) -> None:
        good = serialize_weights({"a": np.array([1, 2], np.float32)}, "n")
        for length in range(len(good)):
            path.write_bytes(good[:length])
            with pytest.raises(WeightsError, match="truncated"):
                check_weights_file(path, spec=WeightsSpec("n", {"a": ("F32", (2,))}), max_bytes=LIMIT, sha256=None)


def test_memory_of_a_check_does_not_grow_with_the_file(path: Path, peak_memory: Callable[[Callable[[], object]], int]) -> None:
    large = {"a": np.zeros(4 * 2**20, np.float32)}  # 16 MiB
    sha256, spec = write_weights(path, large, "net"), WeightsSpec.from_weights(large, "net")
    peak = peak_memory(lambda: check_weights_file(path, spec=spec, max_bytes=2**25, sha256=sha256, reference=path, max_norm=1.0))
    assert peak < 3 * 2**20
