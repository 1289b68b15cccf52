// Says so when the service does not answer the page's questions any more.
(function () {
  function show(isAway) {
    document.getElementById("offline").hidden = !isAway;
  }
  document.addEventListener("htmx:sendError", function () { show(true); });
  document.addEventListener("htmx:responseError", function () { show(true); });
  document.addEventListener("htmx:afterOnLoad", function (event) {
    if (event.detail.successful) show(false);
  });
})();
