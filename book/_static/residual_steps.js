/* The slider of chapter 1: a residual network above the polygon that its layers walk. What it needs
   comes from residual_steps_data.js, what all sliders share from slider.js. */
courseSlider("residual-steps", window.residualStepsData, (data, { html, svg, ...kit }, redraw) => {
  const NET = { width: 640, height: 112, left: 44, right: 596, main: 92, top: 10 };
  const PLANE = { width: 640, height: 465 };
  const POSITIONS = 10; // of the factor, from 1/N to 1
  const chosen = { position: 0 };

  /* Numerics */

  function field([a, b]) {
    return data.matrix.map(([p, q]) => data.gain * Math.tanh(p * a + q * b));
  }

  function states(layers, factor) {
    const found = [data.start];
    for (let n = 0; n < layers; n += 1) {
      const slope = field(found[n]);
      found.push(found[n].map((value, d) => value + factor * slope[d]));
    }
    return found;
  }

  const factorOf = (layers) => layers ** (chosen.position / POSITIONS - 1);

  /* Drawing */

  const hue = (n, layers) => `--hue: ${210 + (160 * n) / Math.max(layers - 1, 1)}`;
  const scaled = (value, [low, high], size) => ((value - low) / (high - low)) * size;
  const atX = (x) => scaled(x, data.window.x, PLANE.width);
  const atY = (y) => PLANE.height - scaled(y, data.window.y, PLANE.height);
  const place = ([x, y]) => [atX(x), atY(y)];
  const name = (x, y, text, anchor) =>
    svg("text", { x, y, "text-anchor": anchor, class: "residual-name" }, text);
  const index = (text) => svg("tspan", { dy: 5, class: "slider-index" }, text);

  const net = kit.drawing(NET.width, NET.height);
  const plane = kit.drawing(PLANE.width, PLANE.height);
  const said = html("p");

  function drawLayers(layers) {
    const wide = (NET.right - NET.left) / layers;
    const box = Math.min(0.5 * wide, 52);
    net.replaceChildren(
      svg("line", { x1: NET.left, x2: NET.right, y1: NET.main, y2: NET.main, class: "residual-main" }),
    );
    for (let n = 0; n < layers; n += 1) {
      const middle = NET.left + (n + 0.5) * wide;
      const [from, to] = [middle - 0.4 * wide, middle + 0.4 * wide];
      const [low, high] = [middle - box / 2, middle + box / 2];
      const group = svg("g", { style: hue(n, layers) });
      const path =
        `M${from} ${NET.main}V36H${low}M${high} 36H${to}V${NET.main}` +
        `M${low} ${NET.top}H${high}V62H${low}Z`;
      group.append(svg("path", { d: path, class: "residual-branch" }));
      group.append(svg("circle", { cx: to, cy: NET.main, r: 5, class: "residual-dot" }));
      if (box > 24) group.append(name(middle, 43, "f", "middle"));
      net.append(group);
    }
    for (const [x, text, anchor] of [
      [NET.left - 6, 0, "end"],
      [NET.right + 4, layers, "start"],
    ]) {
      const label = name(x, NET.main + 6, "x", anchor);
      label.append(index(text));
      net.append(label);
    }
  }

  function arrows() {
    const group = svg("g");
    for (let x = -2.2; x < 2; x += 0.4) {
      for (let y = -1.2; y < 1.8; y += 0.4) {
        const [u, v] = field([x, y]);
        const long = 0.11 / Math.hypot(u, v);
        const [x1, y1] = place([x - long * u, y - long * v]);
        const [x2, y2] = place([x + long * u, y + long * v]);
        group.append(svg("line", { x1, y1, x2, y2, class: "residual-arrow" }));
        group.append(svg("circle", { cx: x2, cy: y2, r: 2.5, fill: "currentColor", opacity: 0.3 }));
      }
    }
    return group;
  }

  function drawPlane(path) {
    plane.replaceChildren(arrows(), kit.line(data.solution.map(place), "slider-true"));
    const points = path.map(place);
    points.slice(1).forEach((end, n) => {
      const group = svg("g", { style: hue(n, path.length - 1) });
      const step = kit.line([points[n], end], "residual-step");
      step.setAttribute("class", "residual-branch residual-step");
      group.append(step, svg("circle", { cx: end[0], cy: end[1], r: 5, class: "residual-dot" }));
      plane.append(group);
    });
    const start = name(points[0][0] + 8, points[0][1] + 22, "x", "start");
    start.append(index(0));
    plane.append(start);
  }

  /* The second slider: the factor, from 1/N on the left to 1 on the right. */

  const id = "residual-steps-factor";
  const range = { type: "range", id, min: 0, max: POSITIONS, step: 1, value: 0 };
  const slider = html("input", range);
  const output = html("output", { for: id });
  slider.addEventListener("input", () => {
    chosen.position = Number(slider.value);
    redraw();
  });
  const row = html("div", { class: "slider-row" }, html("label", { for: id }, "Factor: "), slider, output);

  function draw(at) {
    const layers = data.counts[at];
    const factor = factorOf(layers);
    const path = states(layers, factor);
    const off = Math.hypot(...path[layers].map((v, d) => v - data.solution.at(-1)[d]));
    drawLayers(layers);
    drawPlane(path);
    const own = chosen.position === 0 || layers === 1;
    const size = Number(factor.toPrecision(2));
    output.textContent = own && layers > 1 ? `1/${layers}` : `${size}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    said.textContent = `The output is ${off.toPrecision(2)} away from the end of the solution.`;
    net.setAttribute("aria-label", `A chain of ${layers} residual layers.`);
    plane.setAttribute(
      "aria-label",
      `A field of arrows that turns anticlockwise, its solution, and the polygon of ${layers} ` +
        `layers with the factor ${output.textContent}. It ends ${off.toPrecision(2)} from the solution.`,
    );
    return layers === 1 ? "1 layer" : `${layers} layers`;
  }

  return {
    id: "residual-steps-layers",
    label: "Layers",
    last: data.counts.length - 1,
    value: data.counts.indexOf(data.shown),
    before: [net],
    after: [row, plane, said],
    draw,
  };
});
