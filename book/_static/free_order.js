/* The slider of chapter 17: replaces the picture of three depths by one that can be moved.
   Without this script the picture stays. The data come from free_order_data.js. */
document.addEventListener("DOMContentLoaded", () => {
  const data = window.freeOrderData;
  const figure = document.getElementById("free-order-fig-slider");
  if (!data || !figure) return;

  const BOX = { left: -1.4, right: 3.15, bottom: -1.15, top: 2.5, unit: 130 };
  const MARKS = { reverse: "circle", corrected: "square", predicted: "up", predicted_2: "down" };
  const SVG = "http://www.w3.org/2000/svg";
  const text = (value) => String(value).replace("-", "\u2212");
  const x = (value) => (value - BOX.left) * BOX.unit;
  const y = (value) => (BOX.top - value) * BOX.unit;

  function html(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function svg(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function line(path, kind) {
    const points = path.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
    return svg("polyline", { points, class: `free-order-line free-order-${kind}` });
  }

  function mark(shape, a, b) {
    if (shape === "circle") return svg("circle", { cx: a, cy: b, r: 4 });
    if (shape === "square") return svg("rect", { x: a - 3.5, y: b - 3.5, width: 7, height: 7 });
    const tip = shape === "up" ? -5 : 5;
    return svg("path", { d: `M${a - 5} ${b - tip * 0.7}h10l-5 ${tip * 1.7}z` });
  }

  function marks(path, kind) {
    const group = svg("g", { class: `free-order-mark free-order-${kind}` });
    for (const [a, b] of path) group.append(mark(MARKS[kind], x(a), y(b)));
    return group;
  }

  function axes() {
    const group = svg("g", { class: "free-order-axes" });
    for (let tick = -1; tick <= 3; tick += 1) {
      group.append(svg("line", { x1: x(tick), x2: x(tick), y1: y(BOX.top), y2: y(BOX.bottom) }));
      group.append(svg("text", { x: x(tick) + 4, y: y(BOX.bottom) - 5 }, text(tick)));
    }
    for (let tick = -1; tick <= 2; tick += 1) {
      group.append(svg("line", { x1: x(BOX.left), x2: x(BOX.right), y1: y(tick), y2: y(tick) }));
      group.append(svg("text", { x: 4, y: y(tick) - 4 }, text(tick)));
    }
    const name = (a, b, letter, index) =>
      svg("text", { x: a, y: b }, letter, svg("tspan", { dy: 6, class: "free-order-index" }, index));
    group.append(name(x(2.55), y(BOX.bottom) - 10, "x", "1"));
    group.append(name(30, y(BOX.top) + 20, "x", "2"));
    return group;
  }

  function end(word, [a, b], dx, dy) {
    return svg("text", { x: x(a) + dx, y: y(b) + dy, class: "free-order-end" }, word);
  }

  const width = (BOX.right - BOX.left) * BOX.unit;
  const height = (BOX.top - BOX.bottom) * BOX.unit;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const slider = html("input", {
    type: "range",
    id: "free-order-depth",
    min: 0,
    max: data.depths.length - 1,
    step: 1,
    value: data.depths.indexOf(8),
  });
  const depthShown = html("output", { for: "free-order-depth" });
  const boxes = {};
  const rows = {};
  const body = html("tbody");
  const heads = ["rule", "distance at the start", "gradient error"];
  const head = html("tr", {}, ...heads.map((word) => html("th", { scope: "col" }, word)));

  for (const [name, label] of Object.entries(data.labels)) {
    boxes[name] = html("input", { type: "checkbox", id: `free-order-box-${name}`, checked: "" });
    const sample = svg("svg", { viewBox: "0 0 40 12", class: "free-order-sample" });
    sample.setAttribute("aria-hidden", "true");
    sample.append(svg("path", { d: "M0 6H40", class: `free-order-line free-order-${name}` }));
    const dot = svg("g", { class: `free-order-mark free-order-${name}` });
    dot.append(mark(MARKS[name], 20, 6));
    sample.append(dot);
    const shown = html("label", { for: `free-order-box-${name}` }, boxes[name], sample, label);
    rows[name] = [html("td"), html("td")];
    body.append(html("tr", {}, html("th", { scope: "row" }, shown), ...rows[name]));
    boxes[name].addEventListener("change", draw);
  }

  function draw() {
    const depth = data.depths[Number(slider.value)];
    const { true: truth, rules } = data.paths[depth];
    const shown = Object.keys(rules).filter((name) => boxes[name].checked);
    picture.replaceChildren(axes(), line(truth, "true"));
    for (const name of shown) picture.append(line(rules[name].path, name));
    if (depth <= 32) for (const name of shown) picture.append(marks(rules[name].path, name));
    picture.append(end("start", truth[0], -60, 28), end("end", truth[truth.length - 1], 0, 46));
    for (const [name, cells] of Object.entries(rows)) {
      cells[0].textContent = rules[name].start;
      cells[1].textContent = `${Number((100 * rules[name].gradient).toPrecision(2))} %`;
    }
    depthShown.textContent = `${depth} layers`;
    slider.setAttribute("aria-valuetext", `${depth} layers`);
    const far = shown.map((name) => `${data.labels[name]}, ${rules[name].start}`).join("; ");
    picture.setAttribute(
      "aria-label",
      `Trajectory of ${depth} layers in the plane, and the reconstructed ones. ` +
        `Distance from the true start: ${far || "no rule is chosen"}.`,
    );
  }

  slider.addEventListener("input", draw);
  const label = html("label", { for: "free-order-depth" }, "Number of layers: ");
  const table = html("table", {}, html("thead", {}, head), body);
  const widget = html("div", { class: "free-order" });
  widget.append(html("div", { class: "free-order-slider" }, label, slider, depthShown));
  widget.append(picture, table);
  draw();
  for (const image of figure.querySelectorAll("img")) image.hidden = true;
  figure.prepend(widget);
});
