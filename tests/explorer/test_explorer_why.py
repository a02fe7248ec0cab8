"""New inputs: asked about as rows of the data are, and refused where they are hostile."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from explorer_client import ESCAPES, HOSTILE, Answer, Client, Tags
from PIL import Image

from whence.explorer.incoming import field_name, row_of
from whence.explorer.problems import Problem


def multipart(fields: dict[str, str], image: bytes | None = None, name: str = "x.png") -> tuple[bytes, str]:
    """Return a form's body and its content type."""
    edge = b"--edge-of-the-tests"
    parts = [edge + f'\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
             for key, value in fields.items()]  # fmt: skip
    if image is not None:
        head = f'\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
        parts.append(edge + head.encode() + image + b"\r\n")
    return b"".join([*parts, edge, b"--\r\n"]), "multipart/form-data; boundary=edge-of-the-tests"


def ask(client: Client, fields: dict[str, str], image: bytes | None = None, path: str = "/why.json") -> Answer:
    body, kind = multipart(fields, image)
    return client.post(path, body, **{"content-type": kind})


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose head says so many pixels, and whose body unpacks to many zeros."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_new_text_is_answered_as_the_row_with_the_same_text(opens) -> None:
    client = opens()
    content = client.site.opened.data.content
    new = ask(client, {"text": content[6], "label": "spam"}).json()["explanation"]
    old = client.get("/row.json?id=m6").json()["explanation"]
    assert new["query"]["label"] is None
    assert new["query"]["predicted"] == old["query"]["predicted"]
    assert new["query"]["probabilities"] == old["query"]["probabilities"]
    assert new["measured_label"] == "spam"
    if old["measured_label"] == "spam":
        kept = [one for one in new["helpful"] if one["id"] != "m6"]
        assert [one["id"] for one in kept][:5] == [one["id"] for one in old["helpful"]][:5]


def test_a_new_row_of_a_table(opens) -> None:
    client = opens("tabular")
    content = client.site.opened.data.content
    fields = {field["name"]: field for field in client.get("/why.json?like=r7").json()["fields"]}
    assert float(fields["age"]["value"]) == content["age"].iat[7]
    assert set(fields["town"]["choices"]) == {"A", "B"}
    sent = {field["field"]: field["value"] for field in fields.values()}
    new = ask(client, sent).json()["explanation"]["query"]
    old = client.get("/row.json?id=r7").json()["explanation"]["query"]
    assert new["probabilities"] == old["probabilities"]
    assert ask(client, {**sent, fields["age"]["field"]: ""}).status == 200
    for wrong in ("old", "nan", "inf", "1e999"):
        assert ask(client, {**sent, fields["age"]["field"]: wrong}).error() == "bad_request"


def test_a_new_image(opens) -> None:
    client = opens("image")
    pixels = client.site.opened.data.content[9, :, :, 0]
    new = ask(client, {}, png(pixels)).json()["explanation"]["query"]
    old = client.get("/row.json?id=9").json()["explanation"]["query"]
    assert new["probabilities"] == old["probabilities"]
    colour = np.stack([pixels] * 3, -1).repeat(4, 0).repeat(4, 1)
    assert ask(client, {}, png(colour)).status == 200
    alpha = np.concatenate([colour, np.full((*colour.shape[:2], 1), 90, np.uint8)], -1)
    assert ask(client, {}, png(alpha)).status == 200


@pytest.mark.parametrize("sent", [bomb(60_000, 60_000), bomb(5_000, 5_000), bomb(2**31 - 1, 2**31 - 1)])
def test_images_that_unpack_to_too_much_are_refused(opens, sent) -> None:
    answer = ask(opens("image"), {}, sent)
    assert (answer.status, answer.error()) == (413, "too_large")


@pytest.mark.parametrize(
    "sent", [b"", b"not an image", b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n", png(np.zeros((8, 8), np.uint8))[:45],
             b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a" + bytes(20)]
)  # fmt: skip
def test_files_that_are_no_image_are_refused(opens, sent) -> None:
    answer = ask(opens("image"), {}, sent)
    assert (answer.status, answer.error() in ("bad_image", "bad_request")) == (400, True)


def test_uploads_that_are_too_large_are_refused(opens) -> None:
    client = opens("image")
    assert ask(client, {}, b"x" * (9 * 2**20)).error() == "too_large"
    assert ask(client, {}, b"x" * (17 * 2**20)).error() == "too_large"
    text = opens()
    assert ask(text, {"text": "x" * 100_001}).error() == "too_large"
    assert ask(text, {"text": "x" * (2 * 2**20)}).status == 400


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("body", [b"", b"--edge-of-the-tests", b"\x00" * 100, b'{"text": "x"}'])
def test_forms_that_are_broken_are_refused(opens, kind, body) -> None:
    answer = opens(kind).post("/why.json", body, **{"content-type": "multipart/form-data; boundary=edge-of-the-tests"})
    assert (answer.status, answer.error()) == (400, "bad_request")
    answer = opens(kind).post("/why.json", body, **{"content-type": "multipart/form-data"})
    assert answer.status == 400


def test_hostile_input_comes_back_as_text(opens) -> None:
    client = opens()
    text = f"free prize {HOSTILE} {ESCAPES} </textarea><script>alert(3)</script>"
    page = ask(client, {"text": text}, path="/why")
    assert page.status == 200
    tags = Tags(page.text)
    assert not tags.handlers()
    assert tags.found.count("script") == 2
    assert tags.found.count("textarea") == 1
    assert ask(client, {"text": "x", "label": HOSTILE}).error() == "unknown_label"
    assert "alert(2)>" not in ask(client, {"text": "x", "label": HOSTILE}, path="/why").text


def test_nothing_is_answered_without_a_text(opens) -> None:
    assert ask(opens(), {"text": "   "}).error() == "bad_request"
    assert ask(opens(), {}).error() == "bad_request"


def test_a_run_with_a_users_model_keeps_its_evidence(opens, runs) -> None:
    """Its code is never imported from a run: pages tell what the audit kept, and say what to do."""
    opens()
    client = opens()
    client.site.opened.run.manifest["model"]["embedded"] = False
    assert ask(client, {"text": "x"}).error() == "no_model"
    page = client.get("/row.json?id=m4").json()
    assert page["explanation"] is None
    assert "--model" in page["without"]
    assert "--model" in client.get("/why").text
    assert client.get("/classes.json").json()["influence"] is None
    assert json.dumps(page)


@pytest.mark.parametrize(
    ("typed", "value"),
    [("28,01", 28.01), ("1.234,5", 1234.5), ("1970-01-11", 10.0), ("11.01.1970", 10.0), ("-3e2", -300)],
)
def test_numbers_and_days_are_typed_as_people_write_them(opens, typed: str, value: float) -> None:
    data = opens("tabular").site.opened.data
    place = list(data.content.columns).index("age")
    assert float(row_of(data, {field_name(place): typed}).content.iat[0, place]) == pytest.approx(value)
    with pytest.raises(Problem, match="must be a number"):
        row_of(data, {field_name(place): f"{typed} apples"})


def test_what_was_typed_stays_in_the_form_that_is_refused(opens) -> None:
    client = opens("tabular")
    fields = {field_name(place): "x" * 3 for place in range(client.site.opened.data.content.shape[1])}
    body, kind = multipart({**fields, field_name(0): HOSTILE})
    answer = client.post("/why", body, content_type=kind)
    assert answer.status == 400 and "must be a number" in answer.text and 'role="alert"' in answer.text
    assert "xxx" in answer.text and "<script>alert" not in answer.text
    assert client.post("/why.json", body, content_type=kind).error() == "bad_request"
