/* The slider of chapter 17: three depths become one that can be moved. Its data come from
   free_order_data.js, what all sliders share from slider.js. */
courseSlider("free-order", window.freeOrderData, (data, { html, svg, ...kit }, redraw) => {
  const BOX = { left: -1.4, right: 3.15, bottom: -1.15, top: 2.5, unit: 130 };
  const MARKS = { reverse: "circle", corrected: "square", predicted: "up", predicted_2: "down" };
  const x = (value) => (value - BOX.left) * BOX.unit;
  const y = (value) => (BOX.top - value) * BOX.unit;
  const line = (path, kind) => kit.line(path.map(([a, b]) => [x(a), y(b)]), `free-order-${kind}`);

  function mark(shape, a, b) {
    if (shape === "circle") return svg("circle", { cx: a, cy: b, r: 4 });
    if (shape === "square") return svg("rect", { x: a - 3.5, y: b - 3.5, width: 7, height: 7 });
    const tip = shape === "up" ? -5 : 5;
    return svg("path", { d: `M${a - 5} ${b - tip * 0.7}h10l-5 ${tip * 1.7}z` });
  }

  function marks(points, kind) {
    const group = svg("g", { class: `free-order-mark free-order-${kind}` });
    for (const [a, b] of points) group.append(mark(MARKS[kind], a, b));
    return group;
  }

  function axes() {
    const group = svg("g", { class: "slider-axes" });
    for (let tick = -1; tick <= 3; tick += 1) {
      group.append(svg("line", { x1: x(tick), x2: x(tick), y1: y(BOX.top), y2: y(BOX.bottom) }));
      group.append(svg("text", { x: x(tick) + 4, y: y(BOX.bottom) - 5 }, kit.minus(tick)));
    }
    for (let tick = -1; tick <= 2; tick += 1) {
      group.append(svg("line", { x1: x(BOX.left), x2: x(BOX.right), y1: y(tick), y2: y(tick) }));
      group.append(svg("text", { x: 4, y: y(tick) - 4 }, kit.minus(tick)));
    }
    const name = (a, b, letter, index) =>
      svg("text", { x: a, y: b }, letter, svg("tspan", { dy: 6, class: "slider-index" }, index));
    group.append(name(x(2.55), y(BOX.bottom) - 10, "x", "1"));
    group.append(name(30, y(BOX.top) + 20, "x", "2"));
    return group;
  }

  const end = (word, [a, b], dx, dy) => svg("text", { x: x(a) + dx, y: y(b) + dy }, word);
  const picture = kit.drawing((BOX.right - BOX.left) * BOX.unit, (BOX.top - BOX.bottom) * BOX.unit);
  const boxes = {};

  function named(name, label) {
    const id = `free-order-box-${name}`;
    boxes[name] = html("input", { type: "checkbox", id, checked: "" });
    boxes[name].addEventListener("change", redraw);
    const look = { viewBox: "0 0 40 12", class: "free-order-sample", "aria-hidden": "true" };
    const stroke = svg("path", { d: "M0 6H40", class: `slider-line free-order-${name}` });
    return html("label", { for: id }, boxes[name], svg("svg", look, stroke, marks([[20, 6]], name)), label);
  }

  const labels = Object.entries(data.labels).map(([name, label]) => [name, named(name, label)]);
  const heads = ["rule", "distance at the start", "gradient error"];
  const [table, rows] = kit.table(heads, Object.fromEntries(labels));

  function draw(position) {
    const depth = data.depths[position];
    const { true: truth, rules } = data.paths[depth];
    const shown = Object.keys(rules).filter((name) => boxes[name].checked);
    picture.replaceChildren(axes(), line(truth, "true slider-true"));
    for (const name of shown) picture.append(line(rules[name].path, name));
    const places = (name) => rules[name].path.map(([a, b]) => [x(a), y(b)]);
    if (depth <= 32) for (const name of shown) picture.append(marks(places(name), name));
    picture.append(end("start", truth[0], -60, 28), end("end", truth[truth.length - 1], 0, 46));
    for (const [name, cells] of Object.entries(rows)) {
      cells[0].textContent = rules[name].start;
      cells[1].textContent = `${Number((100 * rules[name].gradient).toPrecision(2))} %`;
    }
    const far = shown.map((name) => `${data.labels[name]}, ${rules[name].start}`).join("; ");
    picture.setAttribute(
      "aria-label",
      `Trajectory of ${depth} layers in the plane, and the reconstructed ones. ` +
        `Distance from the true start: ${far || "no rule is chosen"}.`,
    );
    return `${depth} layers`;
  }

  return {
    id: "free-order-depth",
    label: "Number of layers",
    last: data.depths.length - 1,
    value: data.depths.indexOf(8),
    after: [picture, table],
    draw,
  };
});
