(function () {
  "use strict";
  var DONE = { keep: "kept", relabel: "relabelled", drop: "dropped", unsure: "unsure" };
  var KEYS = { y: "keep", r: "relabel", d: "drop", u: "unsure" };
  var said = document.getElementById("said");
  var silence = 0, made = [];

  function say(text) {
    said.textContent = text;
    clearTimeout(silence);
    silence = setTimeout(function () { said.textContent = ""; }, 4000);
  }

  function cards() { return Array.prototype.slice.call(document.querySelectorAll("[data-row]")); }

  function current() {
    var near = document.activeElement && document.activeElement.closest("[data-row]");
    return near || document.querySelector("[data-row][data-alone]");
  }

  function go(card) {
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  function follow(relation) {
    var link = document.querySelector("a[rel=" + relation + "]");
    if (link) link.click();
    return Boolean(link);
  }

  function move(step, told) {
    var all = cards();
    if (all.length && all[0].hasAttribute("data-alone")) { follow(step > 0 ? "next" : "prev"); return; }
    var here = all.indexOf(current());
    var next = all[here < 0 ? 0 : here + step];
    if (next) go(next);
    else if (!follow(step > 0 ? "next" : "prev")) say((told ? told + " " : "") + "There are no more rows.");
  }

  function show(card, decision) {
    var place = card.querySelector("[data-made]");
    place.replaceChildren();
    if (decision) {
      var word = document.createElement("b");
      word.className = "did " + decision.action;
      word.textContent = DONE[decision.action];
      place.append(word);
      if (decision.label) {
        var label = document.createElement("span");
        label.className = "label suggested";
        label.dir = "auto";
        label.textContent = decision.label;
        place.append(" ", label);
      }
    }
    card.querySelectorAll("[data-action]").forEach(function (button) {
      if (button.dataset.action !== "clear") {
        button.setAttribute("aria-pressed", String(Boolean(decision) && decision.action === button.dataset.action));
        return;
      }
      if (!decision && button === document.activeElement) card.focus();  // what vanishes drops the focus
      button.hidden = !decision;
    });
  }

  function counted(counts) {
    var place = document.querySelector("[data-counts]");
    if (place) {
      place.textContent = Object.keys(counts).map(function (name) {
        return counts[name].toLocaleString("en") + " " + DONE[name];
      }).join(", ");
    }
  }

  function decide(card, action, onward) {
    var chosen = card.querySelector("[data-label]");
    if (!chosen) { say("Read-only: start whence serve RUN --edit to decide."); return; }
    var body = { id: card.dataset.row, action: action };
    if (action === "relabel") body.label = chosen.value;
    fetch("/decisions.json", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body)
    }).then(function (answer) { return answer.json(); }).then(function (found) {
      if (found.error) { say(found.error.message); return; }
      show(card, found.decision);
      made = made.filter(function (id) { return id !== found.id; }).concat(found.decision ? [found.id] : []);
      counted(found.counts);
      var told = "Row " + card.dataset.row + ": " + (found.decision ? DONE[action] + (body.label ? " as " + body.label : "") : "decision undone") + ".";
      say(told);
      if (onward && action !== "clear") move(1, told);
    }).catch(function () { say("The explorer does not answer: is it still running?"); });
  }

  function undo(card) {
    if (card && card.querySelector(".did")) { decide(card, "clear", false); return; }
    var last = cards().find(function (one) { return one.dataset.row === made[made.length - 1]; });
    if (!last) { say("There is no decision to undo."); return; }
    go(last);
    decide(last, "clear", false);
  }

  document.addEventListener("click", function (event) {
    var button = event.target.closest("[data-action]");
    if (button) decide(button.closest("[data-row]"), button.dataset.action, false);
  });

  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    var key = event.key.toLowerCase();
    var card = current();
    if (key === "j") move(1);
    else if (key === "k") move(-1);
    else if (key === "n") follow("next");
    else if (key === "p") follow("prev");
    else if (key === "x" && (card || made.length)) undo(card);
    else if (!card) return;
    else if (KEYS[key]) decide(card, KEYS[key], !card.hasAttribute("data-alone"));
    else if (key === "o" && card.dataset.link) location.assign(card.dataset.link);
    else if (key === "e" && card.querySelector("details")) {
      var details = card.querySelector("details");
      details.open = !details.open;
    } else return;
    event.preventDefault();
  });

  var narrow = matchMedia("(max-width: 44rem)");
  function fold() {
    document.querySelectorAll("details.fold").forEach(function (one) { one.open = !narrow.matches; });
    var here = document.querySelector("nav [aria-current=page]");
    if (here) here.parentNode.scrollLeft = here.offsetLeft - here.parentNode.offsetLeft - 40;
  }
  narrow.addEventListener("change", fold);
  fold();

  cards().forEach(function (card) {
    var word = card.querySelector(".did");
    if (word) {
      card.querySelectorAll("[data-action]").forEach(function (button) {
        if (button.dataset.action !== "clear") button.setAttribute("aria-pressed", String(word.classList.contains(button.dataset.action)));
      });
    }
  });
})();
