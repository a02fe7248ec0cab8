(function () {
  "use strict";
  var root = document.documentElement;
  var asked = new URLSearchParams(location.search).get("theme");
  var kept = null;
  try { kept = localStorage.getItem("whence-theme"); } catch (error) { kept = null; }
  var theme = asked || kept;
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;

  function dark() {
    if (root.dataset.theme) return root.dataset.theme === "dark";
    return matchMedia("(prefers-color-scheme: dark)").matches;
  }

  document.addEventListener("DOMContentLoaded", function () {
    var button = document.getElementById("theme");
    function name() {
      button.setAttribute("aria-label", dark() ? "Switch to the light theme" : "Switch to the dark theme");
    }
    button.hidden = false;
    name();
    button.addEventListener("click", function () {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem("whence-theme", root.dataset.theme); } catch (error) { /* a private window */ }
      name();
    });
    document.addEventListener("click", function (event) {
      var copy = event.target.closest("[data-copy]");
      if (!copy || !navigator.clipboard) return;
      navigator.clipboard.writeText(copy.dataset.copy).then(function () {
        var before = copy.textContent;
        copy.textContent = "Copied";
        setTimeout(function () { copy.textContent = before; }, 1200);
      });
    });
  });
})();
