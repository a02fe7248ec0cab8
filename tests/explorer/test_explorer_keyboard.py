"""By keys alone: from the opened address to a decision, an export, a retraining and an answer; nothing traps."""

from __future__ import annotations

from typing import Any

import pytest
from serving import base, served

from whence.explorer.site import decide

# the focused thing, whether that shows, and whether it can be seen: not outside, not under the bar at the top
FOCUS = """
() => {
  const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
  const x = (Math.max(0, box.left) + Math.min(innerWidth, box.right)) / 2;
  const y = (Math.max(0, box.top) + Math.min(innerHeight, box.bottom)) / 2;
  const there = document.elementFromPoint(x, y);
  return {
    what: e.outerHTML.slice(0, 120),
    nowhere: e === document.body,
    marked: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1,
    visible: there !== null && (e.contains(there) || there.contains(e)),
  };
}
"""
MOST = 400
PAGES = ("/", "/map", "/classes", "/groups", "/why", "/compare", "/export")


def press(page: Any, key: str) -> dict[str, Any]:
    """Press Tab, or Shift and Tab; where it leads must be seen."""
    page.keyboard.press(key)
    found: dict[str, Any] = page.evaluate(FOCUS)
    assert found["nowhere"] or (found["marked"] and found["visible"]), found
    return found


def walk(page: Any, selector: str, key: str = "Tab") -> None:
    """Press a key until something has the focus."""
    for _ in range(MOST):
        press(page, key)
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"no key leads to {selector}")


def focused(page: Any, selector: str) -> bool:
    return bool(page.evaluate("selector => document.activeElement.matches(selector)", selector))


def said(page: Any, words: str) -> None:
    page.wait_for_function("words => document.getElementById('said').textContent.includes(words)", arg=words)


def test_a_person_without_a_mouse_does_everything(opens, window) -> None:
    site, page = opens("text", edit=True).site, window.page
    with served(site) as address:
        page.goto(address)
        press(page, "Tab")
        assert focused(page, ".skip")
        page.keyboard.press("Enter")
        press(page, "Tab")
        assert focused(page, "main *")
        page.keyboard.press("Escape")  # out of the field: letters are keys again
        page.keyboard.press("j")
        first = page.evaluate("document.activeElement.dataset.row")
        page.keyboard.press("e")
        press(page, "Tab")
        assert focused(page, f'[data-row="{first}"] *')
        page.keyboard.press("r")
        said(page, "relabelled")
        second = page.evaluate("document.activeElement.dataset.row")
        assert second not in (None, first) and site.decisions.all()[first].action == "relabel"
        page.keyboard.press("x")  # the row at hand has no decision: the last one goes
        said(page, "undone")
        assert page.evaluate("document.activeElement.dataset.row") == first and not site.decisions.all()
        page.keyboard.press("x")
        said(page, "no decision")
        page.keyboard.press("d")
        said(page, "dropped")
        page.keyboard.press("k")
        walk(page, "[data-action=clear]")
        page.keyboard.press("Enter")
        said(page, "undone")
        assert page.evaluate("document.activeElement.dataset.row") == first, "the button vanishes, the focus stays"
        page.keyboard.press("r")
        said(page, "relabelled")
        assert page.evaluate("document.activeElement.dataset.row") == second

        walk(page, "nav a[href='/export']", "Shift+Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/export")
        walk(page, "#retrain")
        page.keyboard.press("Enter")
        page.wait_for_function("document.activeElement.id === 'progress'")
        page.get_by_text("Predicted change").wait_for()
        page.wait_for_function("document.activeElement.id === 'outcome'")
        walk(page, "nav a[href='/why']", "Shift+Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/why")
        walk(page, "textarea")
        page.keyboard.type("claim your prize now")
        walk(page, "form.asking [type=submit]")
        page.keyboard.press("Enter")
        page.wait_for_selector(".answer .arguments li")
        page.wait_for_function("document.getElementById('answer').getBoundingClientRect().top < innerHeight")
        walk(page, ".answer a")
        assert window.errors == []


@pytest.mark.parametrize("kind", ["tabular", "image"])
def test_tab_leads_through_every_page_and_out_of_it(opens, window, kind, runs) -> None:
    site, page = opens(kind, edit=True, against=runs[kind]).site, window.page
    decide(site, {"id": site.opened.ids[0], "action": "keep"})
    with served(site) as address:
        page.goto(address)
        for path in (*PAGES, "/row?id=" + site.opened.ids[0]):
            page.goto(base(address) + path)
            seen = []
            while not (found := press(page, "Tab"))["nowhere"]:
                seen.append(found["what"])
                assert len(seen) < MOST, seen[-3:]
            assert seen[0].startswith('<a class="skip"') and len(seen) > 10, seen
