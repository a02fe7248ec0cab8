from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from whence.data import ReadOptions, from_arrays, read
from whence.errors import DataError

Y = [0, 1, 0, 1]


def pixels(*shape: int, kind: str = "u1", top: float = 255) -> Any:
    values = np.linspace(0, top, int(np.prod(shape))).reshape(shape)
    return values.astype(kind)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5, 6), (4, 5, 6, 1)),
        ((4, 5, 6, 1), (4, 5, 6, 1)),
        ((4, 5, 6, 3), (4, 5, 6, 3)),
        ((4, 3, 5, 6), (4, 5, 6, 3)),
        ((4, 1, 5, 6), (4, 5, 6, 1)),
        ((4, 3, 5, 3), (4, 3, 5, 3)),
    ],
)
def test_image_shapes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    data = from_arrays(pixels(*shape), Y)
    assert data.kind == "image" and isinstance(data.content, np.ndarray)
    assert data.content.shape == expected and data.content.dtype == np.uint8


def test_channels_first_is_transposed_not_reshaped() -> None:
    x = pixels(4, 3, 5, 6)
    content = from_arrays(x, Y).content
    assert isinstance(content, np.ndarray)
    np.testing.assert_array_equal(content[2, 1, 4], x[2, :, 1, 4])


@pytest.mark.parametrize(
    ("x", "note"),
    [
        (pixels(4, 5, 5), None),
        (pixels(4, 5, 5, kind="i8"), None),
        (pixels(4, 5, 5, kind="f4"), None),
        (pixels(4, 5, 5) > 100, None),
        (pixels(4, 5, 5, kind="f4", top=1), "0 … 1"),
        (pixels(4, 5, 5, kind="f8", top=16), "0 … 16"),
        (pixels(4, 5, 5, kind="u2", top=65535), "0 … 65535"),
        (pixels(4, 5, 5, kind="f2", top=2) - 1, "-1 … 1"),
        (pixels(4, 5, 5, kind="f4", top=7) - 3, "-3 … 4"),
        (pixels(4, 5, 5, kind="f4", top=0), "0 … 1"),
    ],
)
def test_pixel_values_become_bytes(x: Any, note: str | None) -> None:
    data = from_arrays(x, Y)
    content = data.content
    assert isinstance(content, np.ndarray)
    if x.max() > 0:
        assert content.min() == 0 and content.max() == 255
    expected = () if note is None else (f"pixel values scaled from {note} to 0 … 255",)
    assert data.notes == expected


def test_tables_and_texts() -> None:
    table = from_arrays(np.eye(4, dtype=np.float32), Y)
    assert isinstance(table.content, pd.DataFrame) and list(table.content.columns) == ["x0", "x1", "x2", "x3"]
    assert from_arrays(["a", "b", "c", "d"], Y).content == ["a", "b", "c", "d"]
    assert from_arrays(np.array(["a", "b", "c", "d"], dtype=object), Y).kind == "text"


def test_names_ids_and_label_forms() -> None:
    data = from_arrays(np.eye(4), Y, ids=[10, 11, 12, 13], classes=["cat", "dog", "cow"])
    assert data.classes == ("cat", "dog", "cow") and data.labels.tolist() == Y and data.ids[0] == "10"
    assert from_arrays(np.eye(4), np.array(Y)[:, None]).classes == ("0", "1")
    assert from_arrays(np.eye(4), ["b", "a", "b", "b"]).labels.tolist() == [1, 0, 1, 1]
    left = from_arrays(np.arange(400.0).reshape(200, 2), [*Y * 49, 0.0, 1.0, 0.0, np.nan])
    assert len(left) == 199 and left.classes == ("0", "1")


@pytest.mark.parametrize(
    ("x", "y", "more", "message"),
    [
        (np.eye(4), [0, 1, 0], {}, r"x and y must have the same number of rows, got shapes \(4, 4\) and \(3,\)"),
        (np.eye(4), np.eye(4), {}, r"y must hold one class per row, got shape \(4, 4\).* argmax\(axis=1\)"),
        (np.eye(4), Y, {"ids": [1, 2]}, r"ids must have one entry per row \(4\)"),
        (np.eye(4), Y, {"ids": [1, 2, 3, 1]}, r"ids must be unique, got '1' 2 times"),
        (np.eye(4), Y, {"classes": ["a"]}, r"labels must lie in 0 … 0 .* got 0 … 1"),
        (np.eye(4), Y, {"classes": ["a", "a"]}, r"classes must be unique"),
        (np.eye(4), list("abab"), {"classes": ["a", "b"]}, r"labels must be positions in classes"),
        (np.zeros((4, 2, 2, 4)), Y, {}, r"or images .* with C = 1 or 3, got shape \(4, 2, 2, 4\)"),
        (np.zeros((4, 0)), Y, {}, r"got shape \(4, 0\)"),
        (np.zeros(4), Y, {}, r"got shape \(4,\)"),
        (np.eye(4) * 1j, Y, {}, r"x must hold numbers or strings, got complex128"),
        (np.array([None] * 4), Y, {}, r"x must hold numbers or strings, got object"),
        (np.eye(4), [1, 1, 1, 1], {}, r"at least two classes, got only '1'"),
    ],
)
def test_bad_arrays(x: Any, y: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(x, y, **more)


def test_nan_is_an_error_that_counts_and_names_the_first_id() -> None:
    x = np.ones((4, 3, 3), dtype=np.float32)
    x[2, 0, 0], x[2, 1, 1], x[3, 0, 0] = np.nan, np.inf, np.nan
    with pytest.raises(DataError, match=r"x must be finite, got 3 NaN or infinite values in 2 rows \(first id c\)"):
        from_arrays(x, Y, ids=list("abcd"))


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_npz_round_trip_with_ids_split_and_reference(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", x=pixels(4, 5, 5), y=Y, ids=list("wxyz"), split=["train"] * 3 + ["test"], ok=Y)
    data = read(file, ReadOptions(reference="ok"))
    assert data.ids.tolist() == list("wxyz") and data.source == str(file)
    assert data.split is not None and data.split.tolist() == ["train"] * 3 + ["test"]
    assert data.reference is not None and data.reference.tolist() == [False, True, False, True]


def test_npz_options_name_other_arrays(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", pictures=pixels(4, 5, 5), clean=Y, worse=Y[::-1], number=[7, 8, 9, 10])
    data = read(file, ReadOptions(image="pictures", label="worse", id="number"))
    assert data.labels.tolist() == Y[::-1] and data.label_name == "worse" and data.ids[0] == "7"
    assert read(save(tmp_path / "b.npz", X=np.eye(4), Y=Y)).kind == "tabular"


def test_npz_with_a_missing_label_keeps_split_aligned(tmp_path: Path) -> None:
    y = np.array([0.0, 1.0] * 100)
    y[0] = np.nan
    file = save(tmp_path / "a.npz", x=np.arange(400.0).reshape(200, 2), y=y, split=["a"] + ["b"] * 199)
    data = read(file)
    assert len(data) == 199 and data.split is not None and set(data.split) == {"b"}


def test_pickles_are_refused_and_never_loaded(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (touched,))

    np.savez(tmp_path / "a.npz", x=np.array([Bomb()] * 4, dtype=object), y=Y)
    with pytest.raises(DataError, match=r"must hold plain arrays, got pickled objects, which are never unpickled"):
        read(tmp_path / "a.npz")
    assert not touched.exists()


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": np.eye(4)}, {}, r"must hold an array 'y', got x\. Save it as 'y', or name the array with --label"),
        ({"y": Y}, {}, r"must hold an array 'x', got y\. .* with --image"),
        ({"x": np.eye(4), "y": Y}, {"label": "z"}, r"must hold an array 'z', got x, y"),
        ({"x": np.eye(4), "y": Y, "split": ["a"]}, {}, r"array 'split' must have one entry per row \(4\), got shape"),
        ({"x": np.eye(4), "y": Y, "r": list("abcd")}, {"reference": "r"}, r"array 'r' must hold 1/0 or bools"),
    ],
)
def test_npz_arrays_that_do_not_fit(tmp_path: Path, arrays: Any, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(save(tmp_path / "a.npz", **arrays), ReadOptions(**options))


def member(name: str, raw: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, raw)
    return buffer.getvalue()


def lying_header() -> bytes:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "raw",
    [
        b"not a zip",
        b"\x93NUMPY\x01\x00",
        member("x.npy", b"\x93NUMPY\x09\x00garbage"),
        member("x.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': oops}"),
        member("x.npy", lying_header()),
        member("x.npy", b"")[:-30],
    ],
)
def test_damaged_npz_files(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.npz must be a readable \.npz file, got: .*\. Save it again\."):
        read(tmp_path / "a.npz")


def test_truncated_and_corrupted_npz(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", x=np.random.default_rng(0).random((100, 8)), y=[0, 1] * 50)
    raw = bytearray(file.read_bytes())
    file.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"readable \.npz file"):
        read(file)
    raw[200] ^= 0xFF
    file.write_bytes(raw)
    with pytest.raises(DataError, match=r"readable \.npz file"):
        read(file)


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence.data.arrays.LARGEST_UNPACKED", 1 << 20)
    file = save(tmp_path / "a.npz", x=np.zeros((4, 1000, 1000), dtype=np.uint8), y=Y)
    with pytest.raises(DataError, match=r"must unpack to at most 0 GiB, got 0 GiB\. Split it"):
        read(file)
