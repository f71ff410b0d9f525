// Filters the rows of the comparison. Without it every row is shown.
"use strict";
(() => {
  const form = document.getElementById("filter");
  const verdict = document.getElementById("filter-verdict");
  const text = document.getElementById("filter-text");
  const count = document.getElementById("filter-count");
  const rows = [...document.querySelectorAll("table.claims tbody tr")];
  const contents = rows.map((row) => row.textContent.toLowerCase());
  const update = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const fits = (!verdict.value || row.dataset.verdict === verdict.value) &&
        words.every((word) => contents[i].includes(word));
      row.hidden = !fits;
      shown += fits;
    });
    for (const table of document.querySelectorAll("table.claims")) {
      table.hidden = !table.querySelector("tbody tr:not([hidden])");
    }
    count.textContent = shown === rows.length ? `${shown} claims` : `${shown} of ${rows.length} claims`;
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", update);
  // A link to a row that the filter hides shows it again.
  window.addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const row = target && target.closest("tr[hidden]");
    if (row) {
      form.reset();
      update();
      row.scrollIntoView();
    }
  });
  update();
})();
