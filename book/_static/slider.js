/* What the chapters' sliders share. A chapter's own script calls courseSlider with a function that
   makes its parts; they replace the picture. Without scripts the picture stays. */
window.courseSlider = (slug, data, parts) => {
  const SVG = "http://www.w3.org/2000/svg";

  function filled(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const html = (tag, attributes = {}, ...children) =>
    filled(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    filled(document.createElementNS(SVG, tag), attributes, children);
  const minus = (value) => String(value).replace("-", "\u2212");

  const kit = {
    html,
    svg,
    minus,
    drawing: (width, height) => svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }),
    line(points, kind) {
      const text = points.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(" ");
      return svg("polyline", { points: text, class: `slider-line ${kind}` });
    },
    /* A table whose rows begin with their names; returns it, and the other cells by name. */
    table(heads, labels) {
      const head = html("tr", {}, ...heads.map((word) => html("th", { scope: "col" }, word)));
      const body = html("tbody");
      const cells = {};
      for (const [name, label] of Object.entries(labels)) {
        cells[name] = heads.slice(1).map(() => html("td"));
        body.append(html("tr", {}, html("th", { scope: "row" }, label), ...cells[name]));
      }
      return [html("table", {}, html("thead", {}, head), body), cells];
    },
  };

  document.addEventListener("DOMContentLoaded", () => {
    const figure = document.getElementById(`${slug}-fig-slider`);
    if (!data || !figure) return;

    /* parts returns: id, label, last and value of the slider; what stands before and after it; and
       draw, which shows a position and returns it in words. */
    const { id, label, last, value, before = [], after, draw } = parts(data, kit, () => show());
    const slider = html("input", { type: "range", id, min: 0, max: last, step: 1, value });
    const output = html("output", { for: id });
    function show() {
      output.textContent = draw(Number(slider.value));
      slider.setAttribute("aria-valuetext", output.textContent);
    }
    slider.addEventListener("input", show);
    const row = html("div", { class: "slider-row" });
    row.append(html("label", { for: id }, `${label}: `), slider, output);
    const widget = html("div", { class: `slider ${slug}` }, ...before, row, ...after);
    show();
    for (const image of figure.querySelectorAll("img")) image.hidden = true;
    figure.prepend(widget);
  });
};
