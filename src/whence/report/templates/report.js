(function () {
  "use strict";
  var PAGE = 30;
  var data = JSON.parse(document.getElementById("data").textContent);
  var rows = data.rows;
  var matching = [];
  var drawn = 0;
  var view = { which: "flagged", given: "", suggested: "", search: "" };

  function at(id) { return document.getElementById(id); }

  // Every text of the data enters the page here, as a text node and never as markup.
  function make(tag, attributes) {
    var node = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) {
      if (name === "width") node.style.width = attributes[name];
      else node.setAttribute(name, attributes[name]);
    });
    for (var i = 2; i < arguments.length; i++) {
      var child = arguments[i];
      if (child === null || child === undefined) continue;
      (Array.isArray(child) ? child : [child]).forEach(function (one) {
        node.append(one && one.nodeType ? one : String(one));
      });
    }
    return node;
  }

  function label(number, kind) {
    return make("span", { "class": "label " + kind, dir: "auto" }, number < 0 ? "no suggestion" : data.labels[number]);
  }

  function quoted(number) { return "“" + data.labels[number] + "”"; }

  function meter(share, kind) {
    return make("span", { "class": "meter " + (kind || "") }, make("i", { width: share + "%" }));
  }

  function column(content, i) { return data.columns[content.places ? content.places[i] : i]; }

  function cell(value) {
    return value === null ? make("span", { "class": "missing" }, "missing") : value;
  }

  function draw(content, alone) {
    if (typeof content === "string") {
      var text = make("p", { "class": "words", dir: "auto" }, content);
      if (!alone || content.length < 520) return text;
      text.classList.add("long");
      var button = make("button", { type: "button", "class": "plain" }, "Show the whole text");
      button.addEventListener("click", function () { text.classList.remove("long"); button.remove(); });
      return make("div", {}, text, button);
    }
    if (Array.isArray(content)) {
      var image = make("img", { "class": "picture" + (content[1] <= 64 ? " tiny" : ""), alt: "Image of the row" });
      image.width = content[1];
      image.height = content[2];
      image.src = "data:image/png;base64," + content[0];
      return image;
    }
    var shown = alone ? 18 : content.values.length;
    var list = make("dl", { "class": "cells" }, content.values.slice(0, shown).map(function (value, i) {
      return make("div", {}, make("dt", {}, column(content, i)), make("dd", { dir: "auto" }, cell(value)));
    }));
    var hidden = content.values.length - shown + (content.omitted || 0);
    if (hidden > 0) list.append(make("div", {}, make("dt", {}, "and"), make("dd", {}, hidden + " more columns")));
    return list;
  }

  function kindOf(content) {
    return typeof content === "string" ? "text" : Array.isArray(content) ? "image" : "tabular";
  }

  function comparison(row) {
    var head = make("tr", {}, make("td", {}), make("th", { scope: "col" }, "this row", make("br"), label(row.given, "given")));
    row.evidence.forEach(function (one) {
      var known = data.pool[one[0]];
      head.append(make("th", { scope: "col" }, make("b", { "class": "value " + sign(one[1]) }, one[1]), make("br"),
        label(known[1], "given"), make("small", {}, " row ", make("code", {}, known[0]))));
    });
    var body = row.content.values.map(function (value, i) {
      var line = make("tr", {}, make("th", { scope: "row" }, column(row.content, i)), make("td", {}, cell(value)));
      row.evidence.forEach(function (one) {
        var other = data.pool[one[0]][2].values[i];
        line.append(make("td", other === value ? { "class": "same" } : {}, cell(other === undefined ? null : other)));
      });
      return line;
    });
    return make("div", { "class": "scroll", tabindex: "0", role: "region", "aria-label": "Row " + row.id + " beside its evidence" },
      make("table", { "class": "compare" }, make("thead", {}, head), make("tbody", {}, body)),
      make("p", { "class": "quiet-text" }, "Faded cells equal those of this row."));
  }

  function sign(text) { return text[0] === "+" ? "plus" : text[0] === "−" ? "minus" : ""; }

  function argumentsOf(row) {
    if (kindOf(row.content) === "tabular") return comparison(row);
    return make("ol", { "class": "arguments" }, row.evidence.map(function (one) {
      var known = data.pool[one[0]];
      return make("li", { "class": kindOf(known[2]) },
        make("div", { "class": "weight" }, make("b", { "class": sign(one[1]) }, one[1]), meter(one[2], sign(one[1]))),
        make("div", {}, draw(known[2], false),
          make("p", { "class": "where" }, label(known[1], "given"), " row ", make("code", {}, known[0]))));
    }));
  }

  function explained(row) {
    var first = row.evidence[0][1];
    var text = "These training rows argue most against " + quoted(row.given) + ".";
    if (!data.unit || first === "–") return text;
    var change = first[0] === "−" ? "fall by " : "rise by ";
    return text + " Without the first of them, the loss of that label would " + change + first.slice(1) + " " +
      data.unit + " after training again.";
  }

  function signalsOf(row) {
    return make("div", { "class": "signals" }, make("h3", {}, "Signals"),
      make("table", {}, make("tbody", {}, row.signals.map(function (one, i) {
        var about = data.signals[i];
        var dot = make("i", { "class": "dot" });
        if (one[1] !== null) dot.style.left = (one[1] * 100) + "%";
        return make("tr", about.text ? { title: about.text } : {}, make("th", { scope: "row" }, about.name),
          make("td", { "class": "fill" }, make("span", { "class": "track" }, one[1] === null ? null : dot)),
          make("td", {}, one[0]));
      }))),
      make("p", { "class": "quiet-text" }, "The dot is the place among all rows, from the lowest to the highest value."));
  }

  function shell(text) { return /^[\w.\-\/]+$/.test(text) ? text : "'" + text.replace(/'/g, "'\\''") + "'"; }

  function inside(row) {
    var ask = "whence explain RUN --query " + shell(row.id);
    var parts = make("div", { "class": "inside" });
    if (row.evidence.length) {
      parts.append(make("div", { "class": "against" }, make("p", { "class": "quiet-text" }, explained(row)), argumentsOf(row)));
    }
    var side = make("div", { "class": "side" });
    if (row.signals.length) side.append(signalsOf(row));
    if (row.duplicates) {
      side.append(make("div", { "class": "copies" }, make("h3", {}, "Copies of this row"), make("ul", {}, row.duplicates.map(function (one) {
        return make("li", {}, label(one[1], "given"), " row ", make("code", {}, one[0]), one[2] === "near" ? " (nearly the same)" : "");
      }))));
    }
    parts.append(side, make("span", { "class": "command" }, make("code", {}, ask),
      make("button", { type: "button", "data-copy": ask }, "Copy")));
    return parts;
  }

  function summaryOf(row) {
    var n = row.evidence.length;
    var picture = kindOf(row.content) === "image";
    var text = n ? (n === 1 ? "1 row argues" : n + " rows argue") + " against " + (picture ? "it" : quoted(row.given)) : "Signals";
    var line = make("summary", {}, make("span", {}, text));
    if (picture) {
      line.append(make("span", { "class": "thumbs" }, row.evidence.map(function (one) {
        var image = draw(data.pool[one[0]][2], false);
        image.title = data.labels[data.pool[one[0]][1]];
        image.alt = image.title;
        return image;
      })));
    }
    return line;
  }

  function card(row) {
    var where = make("p", { "class": "where" }, make("span", {}, "row ", make("code", {}, row.id)));
    if (row.conflict) where.append(make("b", { "class": "flag" }, "copies with other labels"));
    else if (row.duplicates) where.append(make("span", { "class": "flag calm" }, row.duplicates.length === 1 ? "1 copy" : row.duplicates.length + " copies"));
    if (!row.flagged) where.append(make("span", { "class": "flag calm" }, "below the threshold"));
    var change = make("p", { "class": "change" }, label(row.given, "given"),
      make("span", { "class": "arrow", role: "img", "aria-label": "suggested" }, "→"), label(row.suggested, "suggested"));
    var suspicion = make("p", { "class": "suspicion", title: "Suspicion, from 0 to 1" },
      meter(100 * (row.suspicion || 0)), make("b", {}, row.suspicion === null ? "–" : row.suspicion.toFixed(3)));
    var more = make("details", {}, summaryOf(row));
    more.addEventListener("toggle", function () {
      if (more.open && more.children.length === 1) more.append(inside(row));
    });
    return make("li", { "class": "card" + (row.flagged ? "" : " below"), id: "suspect-" + row.rank },
      make("div", { "class": "face" }, make("span", { "class": "rank", title: "Rank" }, row.rank),
        make("div", { "class": "content" }, draw(row.content, true), where),
        make("div", { "class": "verdict" }, change, suspicion)), more);
  }

  function searched(row) {
    if (row.searchable === undefined) {
      var content = row.content;
      var kind = kindOf(content);
      var text = kind === "text" ? content : kind === "tabular" ? content.values.join(" ") : "";
      row.searchable = (row.id + " " + text).toLowerCase();
    }
    return row.searchable;
  }

  function matches(row) {
    return (view.which === "all" || row.flagged) &&
      (view.given === "" || row.given === Number(view.given)) &&
      (view.suggested === "" || row.suggested === Number(view.suggested)) &&
      (view.search === "" || searched(row).indexOf(view.search) >= 0);
  }

  function number(value) { return value.toLocaleString("en"); }

  function grow(upTo) {
    var part = document.createDocumentFragment();
    var first = drawn;
    for (; drawn < Math.min(upTo, matching.length); drawn++) part.append(card(matching[drawn]));
    at("cards").append(part);
    var left = matching.length - drawn;
    at("more").hidden = left <= 0;
    at("everything").hidden = left <= PAGE;
    at("more").textContent = "Show " + Math.min(PAGE, left) + " more";
    at("everything").textContent = "Show all " + number(matching.length);
    at("status").textContent = matching.length === 0
      ? (rows.length ? "No row matches these filters." : "There is nothing to show.")
      : drawn < matching.length ? number(drawn) + " of " + number(matching.length) + " rows"
        : matching.length === 1 ? "1 row" : number(matching.length) + " rows";
    return at("cards").children[first];
  }

  function refresh() {
    matching = rows.filter(matches);
    drawn = 0;
    at("cards").replaceChildren();
    grow(PAGE);
    at("reset").hidden = view.given === "" && view.suggested === "" && view.search === "";
  }

  function options(select, key) {
    var counts = {};
    rows.forEach(function (row) { if (row[key] >= 0) counts[row[key]] = (counts[row[key]] || 0) + 1; });
    Object.keys(counts).map(Number).sort(function (a, b) { return a - b; }).forEach(function (place) {
      select.append(make("option", { value: place }, data.labels[place] + " (" + number(counts[place]) + ")"));
    });
  }

  function show(which, given, suggested) {
    view = { which: which, given: given, suggested: suggested, search: "" };
    at("given").value = given;
    at("suggested").value = suggested;
    at("search").value = "";
    at("filters").elements.which.value = which;
    refresh();
  }

  function start() {
    var flagged = rows.some(function (row) { return row.flagged; });
    options(at("given"), "given");
    options(at("suggested"), "suggested");
    at("filters").hidden = rows.length < 2;
    at("filters").addEventListener("submit", function (event) { event.preventDefault(); });
    at("filters").addEventListener("input", function () {
      view = { which: at("filters").elements.which.value, given: at("given").value,
        suggested: at("suggested").value, search: at("search").value.trim().toLowerCase() };
      refresh();
    });
    at("reset").addEventListener("click", function () { show(view.which, "", ""); at("search").focus(); });
    at("more").addEventListener("click", function () {
      var first = grow(drawn + PAGE);
      if (first) first.querySelector("summary").focus({ preventScroll: true });
    });
    at("everything").addEventListener("click", function () { grow(matching.length); });
    document.querySelectorAll("[data-given]").forEach(function (button) {
      button.addEventListener("click", function () {
        show("flagged", String(data.labels.indexOf(button.dataset.given)), String(data.labels.indexOf(button.dataset.suggested)));
        at("suspects").scrollIntoView();
        at("status").focus({ preventScroll: true });
      });
    });
    show(flagged ? "flagged" : "all", "", "");
    var first = at("cards").querySelector(".cards:not(.image) > .card details");
    if (first) first.open = true;
    var asked = /^#suspect-(\d+)$/.exec(location.hash);
    var place = asked ? matching.findIndex(function (row) { return row.rank === Number(asked[1]); }) : -1;
    if (place >= 0) {
      grow(place + 1);
      at("suspect-" + asked[1]).querySelector("details").open = true;
      at("suspect-" + asked[1]).scrollIntoView();
    }
  }

  function tips() {
    var tip = at("tip");
    document.querySelectorAll(".bar > title").forEach(function (title) {
      title.parentNode.setAttribute("data-tip", title.textContent);
      title.remove();
    });
    document.addEventListener("pointermove", function (event) {
      var over = event.target.closest && event.target.closest("[data-tip]");
      tip.hidden = !over;
      if (!over) return;
      tip.textContent = over.getAttribute("data-tip");
      var left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
      tip.style.left = Math.max(8, left) + "px";
      tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
    });
    document.addEventListener("scroll", function () { tip.hidden = true; }, { passive: true });
  }

  start();
  tips();
})();
