/* Filters for the ledger's rows. Without scripts all rows stay. */
document.addEventListener("DOMContentLoaded", () => {
  const rows = [...document.querySelectorAll(".claim")];
  const first = document.querySelector(".claims");
  if (!rows.length || !first) return;

  const facets = { source: "From", chapter: "Chapter", verdict: "Verdict" };
  const chosen = {};
  const form = document.createElement("form");
  form.className = "claim-filters";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Filter the claims");
  const count = document.createElement("output");

  for (const [facet, name] of Object.entries(facets)) {
    const select = document.createElement("select");
    select.name = facet;
    const values = [...new Set(rows.map((row) => row.dataset[facet]))];
    if (facet === "chapter") values.sort((a, b) => a - b);
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    select.addEventListener("change", show);
    const label = document.createElement("label");
    label.append(`${name} `, select);
    form.append(label);
    chosen[facet] = select;
  }
  const reset = document.createElement("button");
  reset.type = "reset";
  reset.textContent = "Show all";
  form.append(reset, count);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(show));

  function show() {
    for (const row of rows) {
      row.hidden = Object.entries(chosen).some(
        ([facet, select]) => select.value && row.dataset[facet] !== select.value,
      );
    }
    for (const list of document.querySelectorAll(".claims")) {
      list.closest("section").hidden = !list.querySelector(".claim:not([hidden])");
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
  }

  /* A link from elsewhere must find its row, even under a filter, and the table of runs open. */
  function arrive() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const [row, fold] = [target.closest(".claim"), target.closest("details")];
    if (!(row && row.hidden) && !(fold && !fold.open)) return;
    if (row && row.hidden) form.reset();
    if (fold) fold.open = true;
    setTimeout(() => target.scrollIntoView());
  }
  window.addEventListener("hashchange", arrive);

  first.closest("section").before(form);
  show();
  arrive();
});
