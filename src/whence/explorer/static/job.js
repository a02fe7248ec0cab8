(function () {
  "use strict";
  var button = document.getElementById("retrain");
  var place = document.getElementById("progress");
  var started = place.dataset.state === "running";

  function show(job) {
    if (job.state === "running") {
      place.textContent = job.stage + (job.total ? " (" + job.done + " of " + job.total + ")" : "") + " …";
      setTimeout(ask, 1000);
    } else if (job.state === "failed") {
      place.textContent = job.error;
      if (button) button.disabled = false;
    } else if (job.state === "done" && started) { location.hash = "outcome"; location.reload(); }
  }

  function answer(response) { return response.json(); }
  function read(found) { if (found.error && found.error.message) { place.textContent = found.error.message; } else show(found); }
  function lost() { place.textContent = "The explorer does not answer: is it still running?"; }

  function ask() { fetch("/retrain.json").then(answer).then(read).catch(lost); }

  if (button) {
    button.addEventListener("click", function () {
      button.disabled = true;
      place.focus();  // a disabled button would drop the focus
      started = true;
      fetch("/retrain.json", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" })
        .then(answer).then(read).catch(lost);
    });
  }
  if (started) ask();
  else if (location.hash === "#outcome" && document.getElementById("outcome")) document.getElementById("outcome").focus();
})();
