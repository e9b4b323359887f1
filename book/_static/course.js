/* Names for screen readers, where the theme gives none. */
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
