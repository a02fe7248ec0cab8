import base64
import io

import numpy as np
import pandas as pd
from PIL import Image

from whence.data.labelled import LabelledData
from whence.report import content_of
from whence.report.content import shorten


def one(kind: str, content: object) -> LabelledData:
    return LabelledData(ids=np.array(["a"]), kind=kind, content=content, labels=np.array([0]), classes=("x",))  # type: ignore[arg-type]


def decoded(content: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content["png"]))))


def test_small_image_is_kept_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 28, 20, 1), dtype=np.uint8)
    content = content_of(one("image", pixels), 0)
    assert (content["width"], content["height"]) == (20, 28)
    np.testing.assert_array_equal(decoded(content), pixels[0, :, :, 0])


def test_colours_survive_and_large_images_shrink() -> None:
    pixels = np.zeros((1, 300, 200, 3), dtype=np.uint8)
    pixels[..., 1] = 200
    content = content_of(one("image", pixels), 0)
    assert (content["width"], content["height"]) == (64, 96)
    assert set(map(tuple, decoded(content).reshape(-1, 3))) == {(0, 200, 0)}


def test_text_is_whole_up_to_the_limit_and_keeps_its_end_beyond() -> None:
    text = " ".join(f"word{i}" for i in range(1000))
    assert content_of(one("text", [text[:2000]]), 0)["text"] == text[:2000]
    content = content_of(one("text", [text]), 0)
    assert len(content["text"]) <= 2010
    assert content["text"].startswith("word0 word1 ") and content["text"].endswith(" word999")
    head, tail = content["text"].split(" […] ")
    assert content["omitted"] == len(text) - len(head) - len(tail)
    assert head in text and tail in text


def test_text_without_a_space_is_cut_all_the_same() -> None:
    shown, omitted = shorten("x" * 5000, 100)
    assert len(shown) < 110 and omitted == 4900


def test_control_characters_and_lone_surrogates_can_be_shown() -> None:
    text = content_of(one("text", ["a\x00b\x1b[31m\r\nc\ud800"]), 0)["text"]
    assert text == "a␀b␛[31m\nc?"
    text.encode("utf-8")


def test_cells_show_whole_numbers_plainly_and_mark_what_is_missing() -> None:
    frame = pd.DataFrame({"a": [39.0], "b": [0.1234567], "c": [np.nan], "d": ["State-gov"], "e": [None]})
    cells = content_of(one("tabular", frame), 0)["cells"]
    assert [cell["value"] for cell in cells] == ["39", "0.123457", "", "State-gov", ""]
    assert [cell["missing"] for cell in cells] == [False, False, True, False, True]


def test_very_wide_rows_are_cut_and_say_so() -> None:
    frame = pd.DataFrame(np.ones((1, 500)), columns=[f"f{i}" for i in range(500)])
    content = content_of(one("tabular", frame), 0, cells=64)
    assert len(content["cells"]) == 64 and content["omitted"] == 436
