/* The slider of chapter 2: two equations, four methods, one step. Numbers come from
   solvers_data.js, what all sliders share from slider.js. */
courseSlider("solvers", window.solversData, (data, { html, svg, minus, ...kit }, redraw) => {
  const CURVE = { width: 640, height: 304, left: 50, right: 630, top: 16, bottom: 262 };
  const ERROR = { width: 640, height: 316, left: 74, right: 630, top: 16, bottom: 250 };
  const LIMITS = { swing: 4, follow: 2 };
  const SCALE = [1e-8, 1e3];
  const chosen = { equation: "swing", method: "euler" };

  /* Numerics: a field, one step of an explicit scheme, a path. */

  const fields = {
    swing: (t, [angle, v]) => [v, -data.gravity * Math.sin(angle)],
    follow: (t, [w]) => [data.rate * (Math.cos(t) - w)],
  };
  const moved = (x, slopes, weights, h) =>
    x.map((value, d) => value + h * weights.reduce((s, w, i) => s + w * slopes[i][d], 0));

  function path(equation, method, count) {
    const { rows, weights, fractions } = data.schemes[method];
    const h = data.times[equation] / count;
    const states = [data.starts[equation]];
    for (let n = 0; n < count; n += 1) {
      const slopes = [];
      rows.forEach((row, i) =>
        slopes.push(fields[equation]((n + fractions[i]) * h, moved(states[n], slopes, row, h))),
      );
      states.push(moved(states[n], slopes, weights, h));
    }
    return states;
  }

  const known = {};
  function errors(equation, method) {
    known[`${equation} ${method}`] ??= data.counts.map((count) => {
      const end = path(equation, method, count)[count];
      return Math.hypot(...end.map((x, d) => x - data.ends[equation][d]));
    });
    return known[`${equation} ${method}`];
  }

  /* Drawing */

  const words = (x, y, text, anchor = "middle") => svg("text", { x, y, "text-anchor": anchor }, text);
  function between(value, [low, high], [from, to]) {
    return from + ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (to - from);
  }
  const atTime = (t) => between(t, [0, data.times[chosen.equation]], [CURVE.left, CURVE.right]);
  function atValue(x) {
    const limit = LIMITS[chosen.equation];
    return between(x, [-limit, limit], [CURVE.bottom, CURVE.top]);
  }
  function atStep(h) {
    const time = data.times[chosen.equation];
    const ends = [data.counts[0], data.counts[data.counts.length - 1]].map((n) => Math.log(time / n));
    return between(Math.log(h), ends, [ERROR.left + 12, ERROR.right - 12]);
  }
  const atError = (e) => between(Math.log(e), SCALE.map(Math.log), [ERROR.bottom, ERROR.top]);

  function curveAxes() {
    const group = svg("g", { class: "slider-axes" });
    for (let t = 0; t <= data.times[chosen.equation]; t += 1) {
      group.append(svg("line", { x1: atTime(t), x2: atTime(t), y1: CURVE.top, y2: CURVE.bottom }));
      group.append(words(atTime(t), CURVE.bottom + 28, t));
    }
    for (const x of [-1, 0, 1].map((k) => (k * LIMITS[chosen.equation]) / 2)) {
      group.append(svg("line", { x1: CURVE.left, x2: CURVE.right, y1: atValue(x), y2: atValue(x) }));
      group.append(words(CURVE.left - 8, atValue(x) + 7, minus(x), "end"));
    }
    const what = chosen.equation === "swing" ? "angle in rad" : "follower";
    group.append(words(CURVE.left + 6, CURVE.top + 14, what, "start"));
    group.append(words(CURVE.right - 4, CURVE.bottom - 8, "time", "end"));
    return group;
  }

  function errorAxes() {
    const group = svg("g", { class: "slider-axes" });
    for (const h of [0.01, 0.03, 0.1, 0.3].filter((h) => h > data.times[chosen.equation] / 512)) {
      group.append(svg("line", { x1: atStep(h), x2: atStep(h), y1: ERROR.top, y2: ERROR.bottom }));
      group.append(words(atStep(h), ERROR.bottom + 26, h));
    }
    for (let power = -6; power <= 0; power += 3) {
      const y = atError(10 ** power);
      const name = words(ERROR.left - 8, y + 7, "10", "end");
      name.append(svg("tspan", { dy: -7, class: "slider-index" }, minus(power)));
      group.append(svg("line", { x1: ERROR.left, x2: ERROR.right, y1: y, y2: y }), name);
    }
    group.append(words(ERROR.left + 6, ERROR.top + 14, "error at the end", "start"));
    group.append(words((ERROR.left + ERROR.right) / 2, ERROR.bottom + 56, "step"));
    return group;
  }

  const curve = kit.drawing(CURVE.width, CURVE.height);
  const plot = kit.drawing(ERROR.width, ERROR.height);
  const result = html("p", { class: "solvers-error" });

  function choice(key, legend, labels) {
    const set = html("fieldset", {}, html("legend", {}, legend));
    for (const [value, label] of Object.entries(labels)) {
      const input = html("input", { type: "radio", name: `solvers-${key}`, value });
      input.checked = value === chosen[key];
      input.addEventListener("change", () => {
        chosen[key] = value;
        redraw();
      });
      set.append(html("label", {}, input, label));
    }
    return set;
  }

  function drawCurve(count) {
    const { equation, method } = chosen;
    const h = data.times[equation] / count;
    const truth = data.truths[equation];
    const far = (k) => (k * data.times[equation]) / (truth.length - 1);
    const states = path(equation, method, count);
    /* A curve that leaves the picture ends where it does. */
    const outside = states.findIndex(([x]) => !(Math.abs(x) <= LIMITS[equation]));
    const seen = outside < 0 ? states : states.slice(0, outside + 1);
    const points = seen.map(([x], n) => [atTime(n * h), atValue(x)]);
    curve.replaceChildren(curveAxes());
    curve.append(kit.line(truth.map((x, k) => [atTime(far(k)), atValue(x)]), "slider-true"));
    curve.append(kit.line(points, "solvers-path"));
    if (count > 130) return;
    for (const [cx, cy] of points) curve.append(svg("circle", { cx, cy, r: 4, class: "solvers-dot" }));
  }

  function drawErrors(at) {
    const { equation, method } = chosen;
    const place = (name) =>
      errors(equation, name).map((e, k) => [atStep(data.times[equation] / data.counts[k]), atError(e)]);
    plot.replaceChildren(errorAxes());
    if (equation === "follow") {
      const x = atStep(2 / data.rate);
      plot.append(svg("line", { x1: x, x2: x, y1: ERROR.top, y2: ERROR.bottom, class: "solvers-limit" }));
    }
    for (const name of Object.keys(data.methods)) {
      if (name !== method) plot.append(kit.line(place(name), "solvers-other"));
    }
    plot.append(kit.line(place(method), "solvers-path"));
    const [cx, cy] = place(method)[at];
    plot.append(svg("circle", { cx, cy, r: 8, class: "solvers-now" }));
  }

  function draw(at) {
    const { equation, method } = chosen;
    const count = data.counts[at];
    const error = errors(equation, method)[at];
    const size = error < 0.001 || error > 1000 ? error.toExponential(1) : error.toPrecision(2);
    const spent = count * data.schemes[method].weights.length;
    drawCurve(count);
    drawErrors(at);
    const shown = `${(data.times[equation] / count).toPrecision(2)}, ${count} steps`;
    result.textContent = `${spent} evaluations. Error at the end: ${minus(size)}`;
    const who = `Equation: ${data.equations[equation]}. Method: ${data.methods[method]}`;
    curve.setAttribute(
      "aria-label",
      `The state against time, the solution and the computed steps. ${who}, step ${shown}.`,
    );
    plot.setAttribute(
      "aria-label",
      `Error at the end against the step, both logarithmic. ${who}. The error is ${size} at the ` +
        "chosen step. Dashed: the other methods." +
        (equation === "follow" ? " A dotted upright line marks two over the rate." : ""),
    );
    return shown;
  }

  return {
    id: "solvers-step",
    label: "Step",
    last: data.counts.length - 1,
    value: data.counts.indexOf(32),
    before: [
      choice("equation", "Equation", data.equations),
      choice("method", "Method", data.methods),
    ],
    after: [result, curve, plot],
    draw,
  };
});
