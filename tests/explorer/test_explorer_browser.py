"""In a real Chromium: find, look, decide, export, retrain, ask, choose on the map, upload; hostile rows run nothing."""

from __future__ import annotations

import numpy as np
from PIL import Image
from serving import base, served

from whence.explorer.site import decide

SAID = "word => document.getElementById('said').textContent.includes(word)"


def test_a_person_finds_looks_decides_exports_and_asks(opens, window) -> None:
    site, page = opens("text", edit=True).site, window.page
    with served(site) as address:
        page.goto(address)
        assert "token" not in page.url
        window.sound()
        first = page.locator("[data-row]").first.get_attribute("data-row")
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.dataset.row") == first
        page.keyboard.press("e")
        assert page.evaluate("document.activeElement.querySelector('details').open")
        window.sound()
        page.keyboard.press("r")
        page.wait_for_function(SAID, arg="relabelled")
        assert site.decisions.all()[first].action == "relabel"
        page.keyboard.press("u")
        page.wait_for_function(SAID, arg="unsure")
        assert site.decisions.counts()["unsure"] == 1
        page.goto(base(address) + "/")
        page.keyboard.press("j")
        with page.expect_navigation():
            page.keyboard.press("o")
        window.sound()
        assert "Helps it most" in page.inner_text("body")
        page.keyboard.press("x")
        page.wait_for_function(SAID, arg="undone")
        page.keyboard.press("d")
        page.wait_for_function(SAID, arg="dropped")
        page.goto(base(address) + "/export")
        window.sound()
        with page.expect_download() as coming:
            page.get_by_role("link", name="Download .csv", exact=True).click()
        assert first not in coming.value.path().read_text(encoding="utf-8").split()
        page.goto(base(address) + "/why")
        page.fill("textarea", "claim your free cash prize <b>now</b>")
        page.get_by_role("button", name="Ask").click()
        assert page.inner_text(".answer mark") in ("spam", "ham")
        assert page.locator("main b b, .words b").count() == 0
        window.sound_everywhere()


def test_training_again_from_the_page(opens, window) -> None:
    site, page = opens("tabular", edit=True).site, window.page
    for name in site.opened.ids[3::20]:
        decide(site, {"id": name, "action": "relabel"})
    with served(site) as address:
        page.goto(address.replace("/?", "/export?"))
        page.click("#retrain")
        page.get_by_text("Predicted change").wait_for()
        assert page.evaluate("document.activeElement.id") == "outcome"
        window.sound_everywhere()


def test_a_rectangle_chooses_rows_of_the_map(opens, window) -> None:
    site, page = opens("image").site, window.page
    with served(site) as address:
        page.goto(address.replace("/?", "/map?"))
        page.wait_for_selector("#map[data-ready]")
        box = page.locator("#map").bounding_box()
        page.mouse.move(box["x"] + 60, box["y"] + 14)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] - 45)
        page.mouse.up()
        assert page.input_value("#range [name=x1]") != ""
        told = page.inner_text("#chosen")
        window.sound()
        page.click("#open")
        assert told.split()[0] == page.inner_text(".bench .rail p").split()[0]


def test_the_map_follows_the_theme(opens, window) -> None:
    with served(opens("image").site) as address:
        window.page.goto(address.replace("/?", "/map?"))
        window.page.wait_for_selector("#map[data-ready]")
        drawn = "document.querySelector('#map canvas').toDataURL()"
        before = window.page.evaluate(drawn)
        window.page.get_by_role("button", name="Switch to the dark theme").click()
        window.page.wait_for_function(f"before => {drawn} !== before", arg=before)


def test_an_image_is_uploaded(opens, window, tmp_path) -> None:
    site, page, path = opens("image").site, window.page, tmp_path / "new.png"
    Image.fromarray(np.asarray(site.opened.data.content)[3, :, :, 0]).save(path)
    with served(site) as address:
        page.goto(address.replace("/?", "/why?"))
        page.set_input_files("input[type=file]", path)
        page.get_by_role("button", name="Ask").click()
        page.wait_for_selector(".answer .arguments li")
        window.sound_everywhere()


def test_hostile_rows_run_nothing(opens, window) -> None:
    page = window.page
    with served(opens("text", edit=True).site) as address:
        page.goto(address)
        page.on("dialog", lambda dialog: window.errors.append(dialog.message))
        for path in ("/?show=all&search=alert", "/row?id=m4"):
            page.goto(base(address) + path)
            assert "alert(1)" in page.inner_text("body")
            window.sound()
