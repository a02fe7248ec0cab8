"""Who is let in, and what an answer lets a browser do."""

from __future__ import annotations

import pytest
from explorer_client import HOST, ORIGIN, TOKEN

from whence.explorer import Door


def test_the_token_of_the_address_becomes_a_cookie(opens) -> None:
    client = opens()
    answer = client.get(f"/row?id=m3&token={TOKEN}", cookie="")
    assert (answer.status, answer.headers["location"]) == (303, "/row?id=m3")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"whence-8000={TOKEN};")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert client.get("/row?id=m3").status == 200


@pytest.mark.parametrize("path", ["/", "/queue.json", "/row?id=m3", "/static/style.css", "/nowhere"])
@pytest.mark.parametrize(
    "headers",
    [{"cookie": ""}, {"cookie": "whence-8000=wrong"}, {"cookie": f"whence-8001={TOKEN}"},
     {"cookie": "", "authorization": "Bearer wrong"}, {"cookie": "whence-8000=\xe9"}],
)  # fmt: skip
def test_nothing_is_told_without_the_token(opens, path, headers) -> None:
    answer = opens().get(path, **headers)
    assert answer.status == 403
    assert "m3" not in answer.text
    if path.endswith(".json"):
        assert answer.error() == "wrong_token"


def test_a_wrong_token_in_the_address_opens_nothing(opens) -> None:
    answer = opens().get("/?token=wrong")
    assert answer.status == 403
    assert "set-cookie" not in answer.headers


def test_scripts_may_send_the_token_along(opens) -> None:
    answer = opens(edit=True).send(
        "/decisions.json", {"id": "m3", "action": "keep"}, cookie="", origin="", authorization=f"Bearer {TOKEN}"
    )
    assert answer.json()["decision"]["action"] == "keep"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1", "127.0.0.1:8001", "", "localhost.evil:8000"]
)
def test_another_name_for_this_machine_is_refused(opens, host) -> None:
    """A site whose name was made to point here may not read what we answer."""
    client = opens()
    assert client.ask("GET", "/queue.json", b"", {"host": host}).error() == "wrong_host"


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_this_machine_has_three_names(opens, host) -> None:
    assert opens().get("/queue.json", host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:8001"},
     {"origin": f"https://{HOST}"}, {"origin": "", "sec-fetch-site": "cross-site"},
     {"origin": ORIGIN, "sec-fetch-site": "same-site"}],
)  # fmt: skip
def test_other_sites_can_neither_read_nor_change(opens, headers) -> None:
    client = opens(edit=True)
    assert client.get("/queue.json", **headers).error() == "wrong_origin"
    assert client.send("/decisions.json", {"id": "m3", "action": "drop"}, **headers).error() == "wrong_origin"
    assert client.site.decisions.all() == {}


def test_a_change_without_an_origin_is_refused(opens) -> None:
    client = opens(edit=True)
    assert client.send("/decisions.json", {"id": "m3", "action": "drop"}, origin="").error() == "wrong_origin"


@pytest.mark.parametrize("path", ["/", "/queue.json", "/nowhere", "/static/style.css", "/?token=wrong"])
def test_every_answer_says_what_may_be_done_with_it(opens, path) -> None:
    headers = opens().get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"


def test_the_way_in_leads_nowhere_else(opens) -> None:
    location = opens().get(f"//evil.example/x?token={TOKEN}").headers.get("location", "")
    assert location.startswith("/")
    assert not location.startswith("//")


@pytest.mark.parametrize(
    "path", ["/static/../guard.py", "/static/..%2fguard.py", "/static//etc/passwd", "/static/", "/../../etc/passwd",
             "/static/%2e%2e/site.py", "/row.json/../../x"]
)  # fmt: skip
def test_no_file_but_our_own_can_be_asked_for(opens, path) -> None:
    answer = opens().get(path)
    assert answer.status == 404
    assert "root:" not in answer.text
    assert "import" not in answer.text


def test_bodies_that_are_too_long_are_refused(opens) -> None:
    client = opens(edit=True)
    assert client.send("/decisions.json", {}, **{"content-length": str(2**40)}).error() == "too_large"
    lying = client.post("/decisions.json", b"x" * (17 * 2**20), **{"content-type": "application/json"})
    assert (lying.status, lying.error()) == (413, "too_large")


def test_the_door_names_its_hosts() -> None:
    other = Door(host="192.0.2.7", port=9, token="t")
    assert other.hosts == {"192.0.2.7:9"}
    assert Door(host="::1", port=9, token="t").address == "http://[::1]:9/?token=t"
    assert not other.opened_by(None)
    assert not other.opened_by("")
    assert other.opened_by("t")
