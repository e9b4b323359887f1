/* Names for screen readers, where the theme gives none, and marks where something is cut. */
document.addEventListener("DOMContentLoaded", () => {
  for (const toggle of document.querySelectorAll(".bd-sidebar-primary summary")) {
    const page = toggle.closest("li").querySelector("a");
    toggle.setAttribute("aria-label", `Pages under ${page ? page.textContent.trim() : "this one"}`);
  }
  // A list whose items are not list items is read out as an empty list.
  for (const list of document.querySelectorAll(".citation-list[role=list]")) {
    list.removeAttribute("role");
  }
});

/* A formula, a listing or a table that is wider than its box fades out at the end that is cut. */
document.addEventListener("DOMContentLoaded", () => {
  const SCROLLERS =
    ".bd-article :is(div.math, div.highlight pre, .pst-scrollable-table-container, .claim-table)";
  function mark({ target }) {
    const hidden = target.scrollWidth - target.clientWidth;
    const cut = [];
    if (hidden > 1 && target.scrollLeft > 1) cut.push("before");
    if (hidden > 1 && target.scrollLeft < hidden - 1) cut.push("after");
    if (hidden > 1) target.tabIndex = 0;
    if (cut.length) target.dataset.cut = cut.join(" ");
    else delete target.dataset.cut;
  }
  /* The size changes with the window, when a fold opens and when formulas are set. A formula scrolls
     in a box of its own, which is there once it is set. */
  const sizes = new ResizeObserver((entries) => {
    for (const entry of entries) {
      mark(entry);
      const formula = entry.target.matches("div.math") && entry.target.querySelector("mjx-container");
      if (formula) watch(formula);
    }
  });
  const watched = new WeakSet();
  function watch(target) {
    if (watched.has(target)) return;
    watched.add(target);
    sizes.observe(target);
    target.addEventListener("scroll", () => mark({ target }), { passive: true });
  }
  document.querySelectorAll(SCROLLERS).forEach(watch);
});
