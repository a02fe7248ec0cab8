(function () {
  "use strict";
  var holder = document.getElementById("map");
  var canvas = holder.querySelector("canvas");
  var brush = holder.querySelector(".brush");
  var form = document.getElementById("range");
  var chosen = document.getElementById("chosen");
  var link = document.getElementById("open");
  var under = document.getElementById("under");
  var PAD = { left: 58, right: 12, top: 12, bottom: 40 };
  var found = null, places = null, start = null, asked = -1, drawing = 0;

  // Axes: a scale maps values to [0, 1] and back.
  function scaleOf(axis) {
    var known = axis.values.filter(function (v) { return v !== null; });
    var low = known.reduce(function (a, b) { return Math.min(a, b); }, Infinity);
    var high = known.reduce(function (a, b) { return Math.max(a, b); }, -Infinity);
    if (!known.length) { low = 0; high = 1; }
    var forward = function (v) { return v; }, back = forward;
    if (axis.scale === "log") {
      low = known.filter(function (v) { return v > 0; }).reduce(function (a, b) { return Math.min(a, b); }, high);
      low = Math.max(low, high / 1e12);
      forward = function (v) { return Math.log10(Math.max(v, low)); };
      back = function (v) { return Math.pow(10, v); };
    } else if (axis.scale === "root") {
      var sizes = known.map(Math.abs).sort(function (a, b) { return a - b; });
      var unit = sizes[Math.floor(sizes.length / 2)] || 1;
      forward = function (v) { return Math.asinh(v / unit); };
      back = function (v) { return Math.sinh(v) * unit; };
    }
    var a = forward(low), b = forward(high);
    if (b <= a) { a -= 0.5; b += 0.5; }
    var room = (b - a) * 0.02;
    a -= room; b += room;
    return {
      to: function (v) { return (forward(v) - a) / (b - a); },
      from: function (t) { return back(a + t * (b - a)); },
      ticks: function () { return ticks(axis.scale, back(a), back(b), forward, a, b); }
    };
  }

  function ticks(scale, low, high, forward, a, b) {
    var values = [], step, v;
    if (scale === "log") {
      for (v = Math.ceil(Math.log10(low)); v <= Math.log10(high); v++) values.push(Math.pow(10, v));
    } else if (scale === "root") {
      values.push(0);
      for (v = -12; v <= 12; v++) {
        if (Math.pow(10, v) < high) values.push(Math.pow(10, v));
        if (-Math.pow(10, v) > low) values.push(-Math.pow(10, v));
      }
    } else {
      step = Math.pow(10, Math.floor(Math.log10((high - low) / 4)));
      while ((high - low) / step > 8) step *= (String(step).indexOf("2") >= 0 ? 2.5 : 2);
      for (v = Math.ceil(low / step) * step; v <= high; v += step) values.push(Number(v.toPrecision(6)));
    }
    var last = -1;
    return values.sort(function (x, y) { return x - y; }).filter(function (value) {
      var t = (forward(value) - a) / (b - a);
      if (t < 0 || t > 1 || t - last < 0.08) return false;
      last = t;
      return true;
    });
  }

  function text(value) {
    if (value === 0) return "0";
    var size = Math.abs(value);
    return size >= 1e4 || size < 1e-3 ? value.toExponential(0).replace("e+", "e") : String(Number(value.toPrecision(3)));
  }

  function words(name) { return name.replace("self_influence", "self-influence").replace(/_/g, " "); }

  function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  function box() {
    return { x: PAD.left, y: PAD.top, w: holder.clientWidth - PAD.left - PAD.right, h: holder.clientHeight - PAD.top - PAD.bottom };
  }

  function layout() {
    var sx = scaleOf(found.x), sy = scaleOf(found.y), n = found.x.values.length;
    var px = new Float32Array(n), py = new Float32Array(n);
    for (var i = 0; i < n; i++) {
      px[i] = found.x.values[i] === null ? NaN : sx.to(found.x.values[i]);
      py[i] = found.y.values[i] === null ? NaN : sy.to(found.y.values[i]);
    }
    return { sx: sx, sy: sy, px: px, py: py };
  }

  function bounds() {
    function read(name, otherwise) {
      var given = form.elements[name].value.trim();
      var value = Number(given);
      return given === "" || !isFinite(value) ? otherwise : value;
    }
    return { x0: read("x0", -Infinity), x1: read("x1", Infinity), y0: read("y0", -Infinity), y1: read("y1", Infinity),
      given: form.elements.given.value };
  }

  function whole(b) { return b.x0 === -Infinity && b.x1 === Infinity && b.y0 === -Infinity && b.y1 === Infinity; }

  function inside(i, b) {
    var x = found.x.values[i], y = found.y.values[i];
    if (b.given !== "" && found.given[i] !== Number(b.given)) return false;
    if (whole(b)) return x !== null && y !== null;
    return x !== null && y !== null && x >= b.x0 && x <= b.x1 && y >= b.y0 && y <= b.y1;
  }

  function draw() {
    drawing = 0;
    var ratio = window.devicePixelRatio || 1, area = box(), b = bounds();
    canvas.width = holder.clientWidth * ratio;
    canvas.height = holder.clientHeight * ratio;
    var c = canvas.getContext("2d");
    c.scale(ratio, ratio);
    axes(c, area);
    var n = places.px.length, size = n > 20000 ? 2 : n > 3000 ? 3 : 4;
    var all = b.given === "" && whole(b);
    var done = new Set(found.decided);
    function layer(pick, fill, alpha, side) {
      c.fillStyle = fill;
      for (var i = 0; i < n; i++) {
        if (!pick(i) || !(places.px[i] === places.px[i])) continue;
        c.globalAlpha = all || inside(i, b) ? alpha : alpha * 0.15;
        c.fillRect(area.x + places.px[i] * area.w - side / 2, area.y + (1 - places.py[i]) * area.h - side / 2, side, side);
      }
    }
    layer(function (i) { return !found.suspect[i] && !done.has(i); }, colour("--soft"), n > 20000 ? 0.35 : 0.55, size);
    layer(function (i) { return found.suspect[i] && !done.has(i); }, colour("--alarm"), 0.9, size + 1);
    layer(function (i) { return done.has(i); }, colour("--good"), 1, size + 2);
    c.globalAlpha = 1;
    frame(b, area);
  }

  function axes(c, area) {
    c.clearRect(0, 0, canvas.width, canvas.height);
    c.font = "12px system-ui, sans-serif";
    c.fillStyle = colour("--soft");
    c.strokeStyle = colour("--line");
    c.textAlign = "center";
    places.sx.ticks().forEach(function (value) {
      var x = area.x + places.sx.to(value) * area.w;
      c.beginPath(); c.moveTo(x, area.y); c.lineTo(x, area.y + area.h); c.stroke();
      c.fillText(text(value), x, area.y + area.h + 16);
    });
    c.fillText(words(found.x.name), area.x + area.w / 2, area.y + area.h + 34);
    c.textAlign = "right";
    places.sy.ticks().forEach(function (value) {
      var y = area.y + (1 - places.sy.to(value)) * area.h;
      c.beginPath(); c.moveTo(area.x, y); c.lineTo(area.x + area.w, y); c.stroke();
      c.fillText(text(value), area.x - 6, y + 4);
    });
    c.save();
    c.translate(12, area.y + area.h / 2);
    c.rotate(-Math.PI / 2);
    c.textAlign = "center";
    c.fillText(words(found.y.name), 0, 0);
    c.restore();
  }

  function frame(b, area) {
    brush.hidden = whole(b);
    if (brush.hidden) return;
    function at(value, scale, otherwise) { return isFinite(value) ? Math.min(1, Math.max(0, scale.to(value))) : otherwise; }
    var x0 = at(b.x0, places.sx, 0), x1 = at(b.x1, places.sx, 1), y0 = at(b.y0, places.sy, 0), y1 = at(b.y1, places.sy, 1);
    brush.style.left = (area.x + x0 * area.w) + "px";
    brush.style.width = Math.max(0, x1 - x0) * area.w + "px";
    brush.style.top = (area.y + (1 - y1) * area.h) + "px";
    brush.style.height = Math.max(0, y1 - y0) * area.h + "px";
  }

  function tell() {
    var b = bounds(), rows = 0, suspects = 0, nowhere = 0;
    for (var i = 0; i < found.suspect.length; i++) {
      if (found.x.values[i] === null || found.y.values[i] === null) nowhere++;
      else if (inside(i, b)) { rows++; suspects += found.suspect[i]; }
    }
    chosen.textContent = rows.toLocaleString("en") + (rows === 1 ? " row" : " rows") + ", " + suspects.toLocaleString("en") + " of them suspect" +
      (nowhere ? "; " + nowhere.toLocaleString("en") + " more have no such value and are not drawn" : "");
    link.hidden = (whole(b) && b.given === "") || rows === 0;
    var part = function (axis, low, high) {
      return low === -Infinity && high === Infinity ? [] : [axis.name + ":" + (low === -Infinity ? -1e300 : low) + ":" + (high === Infinity ? 1e300 : high)];
    };
    var ranges = part(found.x, b.x0, b.x1).concat(part(found.y, b.y0, b.y1)).join(";");
    var query = new URLSearchParams({ show: "all" });
    if (ranges) query.set("ranges", ranges);
    if (b.given !== "") query.set("given", form.elements.given.selectedOptions[0].textContent);
    link.href = "/?" + query.toString();
  }

  function redraw() { if (!drawing) drawing = requestAnimationFrame(draw); }
  function redrawn() { if (found) redraw(); }
  function changed() { tell(); redraw(); }

  function unit(event) {
    var area = box(), frame = holder.getBoundingClientRect();
    return { x: Math.min(1, Math.max(0, (event.clientX - frame.left - area.x) / area.w)),
      y: Math.min(1, Math.max(0, 1 - (event.clientY - frame.top - area.y) / area.h)) };
  }

  function nearest(at) {
    var area = box(), best = -1, least = 100;
    for (var i = 0; i < places.px.length; i++) {
      var dx = (places.px[i] - at.x) * area.w, dy = (places.py[i] - at.y) * area.h, d = dx * dx + dy * dy;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }

  function choose(from, to) {
    function put(name, value) { form.elements[name].value = Number(value.toPrecision(4)); }
    put("x0", places.sx.from(Math.min(from.x, to.x))); put("x1", places.sx.from(Math.max(from.x, to.x)));
    put("y0", places.sy.from(Math.min(from.y, to.y))); put("y1", places.sy.from(Math.max(from.y, to.y)));
    changed();
  }

  function look(i) {
    if (i < 0 || i === asked) return;
    asked = i;
    fetch("/card.json?position=" + i).then(function (answer) { return answer.json(); }).then(function (row) {
      if (row.error || asked !== i) return;
      under.replaceChildren();
      var title = document.createElement("p"), link = document.createElement("a");
      link.textContent = "row " + row.id;
      link.href = "/row?" + new URLSearchParams({ id: row.id });
      title.append(link, " given ", strong(row.label), ", suggested ", strong(row.suggested_label || "nothing"));
      under.append(title, content(row.content));
      under.hidden = false;
    });
  }

  function strong(value) { var node = document.createElement("b"); node.textContent = value; node.dir = "auto"; return node; }

  function content(found) {
    var node;
    if (found.kind === "image") {
      node = document.createElement("img");
      node.className = "picture" + (found.width <= 64 ? " tiny" : "");
      node.alt = "Image of the row";
      node.src = "data:image/png;base64," + found.png;
    } else {
      node = document.createElement("p");
      node.dir = "auto";
      node.textContent = found.kind === "text" ? found.text : found.cells.map(function (cell) {
        return cell.name + ": " + (cell.missing ? "missing" : cell.value);
      }).join(", ");
    }
    return node;
  }

  holder.addEventListener("pointerdown", function (event) {
    if (!found) return;
    start = unit(event);
    holder.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  holder.addEventListener("pointermove", function (event) {
    if (!start) return;
    var now = unit(event);
    if (Math.abs(now.x - start.x) + Math.abs(now.y - start.y) > 0.01) choose(start, now);
  });
  holder.addEventListener("pointerup", function (event) {
    if (!start) return;
    var now = unit(event);
    if (Math.abs(now.x - start.x) + Math.abs(now.y - start.y) <= 0.01) look(nearest(now));
    start = null;
  });
  form.addEventListener("input", changed);
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  document.getElementById("whole").addEventListener("click", function () { form.reset(); changed(); });
  window.addEventListener("resize", redrawn);
  new MutationObserver(redrawn).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawn);

  chosen.textContent = "Loading the rows …";
  fetch("/points.json?" + new URLSearchParams({ x: holder.dataset.x, y: holder.dataset.y }))
    .then(function (answer) { return answer.json(); })
    .then(function (points) {
      if (points.error) { chosen.textContent = points.error.message; return; }
      found = points;
      places = layout();
      changed();
      holder.dataset.ready = "true";
    })
    .catch(function () { chosen.textContent = "The explorer does not answer: is it still running?"; });
})();
