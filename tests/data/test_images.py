from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from whence.data import ReadOptions, from_frame, read
from whence.errors import DataError

GENERATOR = np.random.default_rng(0)


def picture(width: int = 8, height: int = 8, mode: str = "L") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(GENERATOR.integers(0, 255, shape, dtype=np.uint8), mode=None)


def encoded(image: Image.Image, form: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **more)
    return buffer.getvalue()


def save(path: Path, image: Image.Image, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **more)


def two_classes(folder: Path, **kinds: Any) -> Path:
    for name in ("cat", "dog"):
        for number in range(3):
            save(folder / name / f"{number}.png", picture(**kinds))
    return folder


def test_folder_by_class(tmp_path: Path) -> None:
    data = read(two_classes(tmp_path))
    assert data.kind == "image" and data.classes == ("cat", "dog") and data.split is None
    assert data.ids.tolist() == ["cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png", "dog/2.png"]
    assert isinstance(data.content, np.ndarray) and data.content.shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(data.content[4, :, :, 0], np.asarray(Image.open(tmp_path / "dog/1.png")))
    assert data.notes == () and data.label_name == "folder"


def test_folder_with_splits_depth_and_clutter(tmp_path: Path) -> None:
    two_classes(tmp_path / "train", mode="RGB")
    two_classes(tmp_path / "test", mode="RGB")
    save(tmp_path / "train" / "dog" / "deep" / "9.png", picture(mode="RGB"))
    for hidden in (".cache/cat/1.png", "train/.DS_Store", "train/cat/._0.png", "__MACOSX/cat/0.png"):
        path = tmp_path / hidden
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"junk")
    (tmp_path / "train" / "readme.txt").write_text("hello")
    data = read(tmp_path)
    assert len(data) == 13 and data.classes == ("cat", "dog")
    assert data.split is not None and sorted(set(data.split.tolist())) == ["test", "train"]
    assert "train/dog/deep/9.png" in data.ids.tolist()
    assert data.notes == ("1 files that are not images left out",)


def test_loose_images_are_noted_and_dropped_classes_left_out(tmp_path: Path) -> None:
    two_classes(tmp_path)
    save(tmp_path / "loose.png", picture())
    save(tmp_path / "bird" / "0.png", picture())
    data = read(tmp_path, ReadOptions(drop=("bird",)))
    assert data.classes == ("cat", "dog") and "1 images outside the class folders left out" in data.notes


def test_only_loose_images_or_one_class(tmp_path: Path) -> None:
    save(tmp_path / "0.png", picture())
    with pytest.raises(DataError, match=r"one folder of images per class, got 1 images and no class folder"):
        read(tmp_path)
    save(tmp_path / "cat" / "0.png", picture())
    with pytest.raises(DataError, match=r"label column 'folder' must hold at least two classes, got only 'cat'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not an image, or damaged"),
        (b"\x89PNG\r\n\x1a\nnonsense", ""),
        (encoded(picture(64, 64))[:-700], "truncated"),
        (encoded(picture(64, 64, "RGB"), "JPEG")[:-900], "truncated"),
        (b"GIF89a\x00", ""),
        (b"RIFF\x00\x00\x00\x00WEBP", ""),
    ],
)
def test_corrupt_images_are_named(tmp_path: Path, raw: bytes, reason: str) -> None:
    two_classes(tmp_path)
    (tmp_path / "dog" / "bad.png").write_bytes(raw)
    with pytest.raises(DataError, match=rf"image .*bad\.png must be readable, got: .*{reason}.*Repair or remove"):
        read(tmp_path)


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    two_classes(tmp_path)
    save(tmp_path / "cat" / "bomb.png", Image.new("1", (20_000, 10_000)))
    with pytest.raises(DataError, match=r"image .*bomb\.png must have at most 89,478,485 pixels, got more"):
        read(tmp_path)


def test_sizes(tmp_path: Path) -> None:
    large = read(two_classes(tmp_path / "large", width=200, height=100))
    assert large.content.shape == (6, 32, 64, 1)  # type: ignore[union-attr]
    assert large.notes == ("images resized from 200x100 to 64x32 pixels",)
    chosen = read(tmp_path / "large", ReadOptions(size=20))
    assert chosen.content.shape == (6, 10, 20, 1)  # type: ignore[union-attr]
    mixed = two_classes(tmp_path / "mixed", width=40, height=30)
    save(mixed / "cat" / "x.png", picture(24, 90))
    data = read(mixed)
    assert data.content.shape == (7, 24, 24, 1)  # type: ignore[union-attr]
    assert data.notes == ("images of 2 sizes (24 to 90 pixels a side) resized to 24x24 pixels",)


def rows(*images: Any) -> Any:
    frame = pd.DataFrame({"image": pd.Series(list(images), dtype=object), "label": ["a", "b"] * (len(images) // 2)})
    return from_frame(frame)


def test_modes_become_grey_or_rgb() -> None:
    grey = picture(8, 8)
    colour = picture(8, 8, "RGB")
    data = rows(encoded(grey), encoded(colour))
    assert data.content.shape == (2, 8, 8, 3)
    assert "1 of 2 images are greyscale and were turned into RGB" in data.notes
    np.testing.assert_array_equal(data.content[0, :, :, 1], np.asarray(grey))
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (rows(encoded(clear), encoded(colour)).content[0] == 255).all()
    for mode in ("1", "P", "CMYK", "LA", "YCbCr"):
        form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
        assert rows(encoded(colour.convert(mode), form), encoded(colour)).content.shape == (2, 8, 8, 3)


def test_sixteen_bit_images_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    data = rows(encoded(Image.fromarray(ramp.astype(np.uint16))), encoded(Image.fromarray(ramp.astype(np.uint16))))
    assert data.content.shape == (2, 8, 8, 1)
    np.testing.assert_allclose(data.content[0, :, :, 0], ramp / 257, atol=1)
    floats = Image.fromarray((ramp / 65535).astype(np.float32))
    content = rows(encoded(floats, "TIFF"), floats).content
    assert content[0].max() == 255 and content[1].max() == 255


def test_rotation_is_undone_and_first_frames_used() -> None:
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(image, "PNG", exif=exif)
    data = rows(turned, turned)
    assert data.content.shape == (2, 16, 8, 3)
    assert data.content[0, 0, 0, 0] == 255 and data.content[0, 15, 0, 0] == 0
    frames = encoded(picture(), "GIF", save_all=True, append_images=[picture(), picture()])
    assert "2 images have several frames; the first is used" in rows(frames, frames).notes


def test_cells_may_be_bytes_structs_pictures_or_paths(tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "p.png")
    cells = [encoded(image), {"bytes": encoded(image), "path": None}, image, {"bytes": None, "path": "p.png"}]
    frame = pd.DataFrame({"image": pd.Series(cells, dtype=object), "label": list("abab")})
    data = from_frame(frame, folder=tmp_path)
    assert data.kind == "image" and (data.content == data.content[0]).all()  # type: ignore[index,union-attr]
    assert data.notes == ("image column: image",)


def test_csv_of_image_paths(tmp_path: Path) -> None:
    two_classes(tmp_path / "img")
    lines = "".join(f"img/{name}/{i}.png,{i},{name}\n" for name in ("cat", "dog") for i in range(3))
    (tmp_path / "t.csv").write_text("file,count,label\n" + lines)
    data = read(tmp_path / "t.csv")
    assert data.kind == "image" and len(data) == 6 and "columns not used: count" in data.notes


def test_missing_and_wrong_cells_name_the_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,label\nnone.png,a\nnone.png,b\n")
    with pytest.raises(DataError, match=r"image none\.png must exist, got no such file"):
        read(tmp_path / "t.csv", ReadOptions(image="file"))
    with pytest.raises(DataError, match=r"image column 'image' must hold image files .* got float in row 1"):
        from_frame(pd.DataFrame({"image": [encoded(picture()), 1.5], "label": ["a", "b"]}), ReadOptions(image="image"))
    with pytest.raises(DataError, match=r"image image of row 1 must be readable, got: not an image"):
        rows(encoded(picture()), b"\x89PNG broken")


def test_paths_that_do_not_exist_are_ordinary_strings(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,x,label\nnone.png,1,a\nnone2.png,4,b\n")
    assert read(tmp_path / "t.csv").kind == "tabular"
