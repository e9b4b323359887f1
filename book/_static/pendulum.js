/* The slider of chapter 10: trained nets that can be rolled out with any scheme and step. Their
   weights come from pendulum_data.js, what all sliders share from slider.js. */
courseSlider("pendulum", window.pendulumData, (data, { html, svg, minus, ...kit }, redraw) => {
  const MOTION = { width: 640, height: 304, left: 50, right: 630, top: 16, bottom: 262, limit: 4 };
  const ERROR = { width: 640, height: 310, left: 70, right: 630, top: 16, bottom: 244 };
  const RANGE = { h: [0.005, 0.5], e: [1e-10, 1e2] };
  const FIELDS = { ...data.labels, equation: "none: the true equation" };

  /* Numerics: a field, one step of an explicit scheme, a rollout. */

  function fieldOf(name) {
    if (name === "equation") return ([angle, v]) => [v, -data.gravity * Math.sin(angle)];
    const { inner, shift, outer } = data.nets[name];
    return ([angle, v]) => {
      let [a, b] = [0, 0];
      inner.forEach(([p, q], j) => {
        const value = Math.tanh(p * angle + q * v + shift[j]);
        a += outer[0][j] * value;
        b += outer[1][j] * value;
      });
      return [a, b];
    };
  }

  function moved(x, slopes, weights, h) {
    return x.map((value, d) => value + h * weights.reduce((s, w, i) => s + w * slopes[i][d], 0));
  }

  function rollout(name, method, h, steps) {
    const [field, { rows, weights }] = [fieldOf(name), data.schemes[method]];
    const states = [data.start];
    for (let n = 0; n < steps; n += 1) {
      const slopes = [];
      for (const row of rows) slopes.push(field(moved(states[n], slopes, row, h)));
      states.push(moved(states[n], slopes, weights, h));
    }
    return states;
  }

  function errorOf(name, method, count) {
    const [angle, v] = rollout(name, method, data.time / count, count)[count];
    return Math.hypot(angle - data.end[0], v - data.end[1]);
  }

  const known = {};
  function errors(name, method) {
    known[`${name} ${method}`] ??= data.counts.map((count) => errorOf(name, method, count));
    return known[`${name} ${method}`];
  }

  /* Drawing */

  const words = (x, y, text, anchor = "middle") => svg("text", { x, y, "text-anchor": anchor }, text);

  function between(value, [low, high], [from, to]) {
    return from + ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (to - from);
  }
  const atTime = (t) => between(t, [0, data.shown], [MOTION.left, MOTION.right]);
  const atAngle = (a) =>
    between(a, [-MOTION.limit, MOTION.limit], [MOTION.bottom, MOTION.top]);
  const atStep = (h) => between(Math.log(h), RANGE.h.map(Math.log), [ERROR.left, ERROR.right]);
  const atError = (e) => between(Math.log(e), RANGE.e.map(Math.log), [ERROR.bottom, ERROR.top]);

  function motionAxes() {
    const group = svg("g", { class: "slider-axes" });
    for (let t = 0; t <= data.shown; t += 1) {
      group.append(svg("line", { x1: atTime(t), x2: atTime(t), y1: MOTION.top, y2: MOTION.bottom }));
      group.append(words(atTime(t), MOTION.bottom + 28, t));
    }
    for (const a of [-2, 0, 2]) {
      group.append(svg("line", { x1: MOTION.left, x2: MOTION.right, y1: atAngle(a), y2: atAngle(a) }));
      group.append(words(MOTION.left - 8, atAngle(a) + 7, minus(a), "end"));
    }
    group.append(words(MOTION.left + 6, MOTION.top + 14, "angle in rad", "start"));
    group.append(words(MOTION.right - 4, MOTION.bottom - 8, "time in s", "end"));
    return group;
  }

  function errorAxes() {
    const group = svg("g", { class: "slider-axes" });
    for (const h of [0.01, 0.03, 0.1, 0.3]) {
      group.append(svg("line", { x1: atStep(h), x2: atStep(h), y1: ERROR.top, y2: ERROR.bottom }));
      group.append(words(atStep(h), ERROR.bottom + 26, h));
    }
    for (let power = -9; power <= 0; power += 3) {
      const y = atError(10 ** power);
      const small = svg("tspan", { dy: -7, class: "slider-index" }, minus(power));
      const name = words(ERROR.left - 8, y + 7, "10", "end");
      name.append(small);
      group.append(svg("line", { x1: ERROR.left, x2: ERROR.right, y1: y, y2: y }), name);
    }
    group.append(words(ERROR.left + 6, ERROR.top + 14, `error after ${data.time} s`, "start"));
    group.append(words((ERROR.left + ERROR.right) / 2, ERROR.bottom + 54, "step in s"));
    return group;
  }

  const motion = kit.drawing(MOTION.width, MOTION.height);
  const plot = kit.drawing(ERROR.width, ERROR.height);
  const result = html("p", { class: "pendulum-error" });
  const chosen = { field: "euler", method: "euler" };

  function choice(key, legend, labels) {
    const set = html("fieldset", {}, html("legend", {}, legend));
    for (const [value, label] of Object.entries(labels)) {
      const input = html("input", { type: "radio", name: `pendulum-${key}`, value });
      input.checked = value === chosen[key];
      input.addEventListener("change", () => {
        chosen[key] = value;
        redraw();
      });
      set.append(html("label", {}, input, label));
    }
    return set;
  }

  function drawMotion(h) {
    const path = rollout(chosen.field, chosen.method, h, Math.round(data.shown / h));
    const truth = data.truth.map((a, k) => [
      atTime((k * data.shown) / (data.truth.length - 1)),
      atAngle(a),
    ]);
    const points = path.map(([a], n) => [atTime(n * h), atAngle(a)]);
    motion.replaceChildren(motionAxes(), kit.line(truth, "slider-true"));
    motion.append(kit.line(points, "pendulum-net"));
    if (points.length > 150) return;
    for (const [cx, cy] of points) motion.append(svg("circle", { cx, cy, r: 3.5, class: "pendulum-dot" }));
  }

  function drawErrors(at) {
    const place = (list) => list.map((e, k) => [atStep(data.time / data.counts[k]), atError(e)]);
    const points = place(errors(chosen.field, chosen.method));
    plot.replaceChildren(errorAxes());
    const own = { x1: atStep(data.step), x2: atStep(data.step), y1: ERROR.top, y2: ERROR.bottom };
    plot.append(svg("line", { ...own, class: "pendulum-own" }));
    if (chosen.field !== "equation") {
      plot.append(kit.line(place(errors("equation", chosen.method)), "pendulum-baseline"));
    }
    plot.append(kit.line(points, "pendulum-net"));
    const [cx, cy] = points[at];
    plot.append(svg("circle", { cx, cy, r: 8, class: "pendulum-now" }));
  }

  function draw(at) {
    const count = data.counts[at];
    const h = data.time / count;
    const error = errors(chosen.field, chosen.method)[at];
    const size = error < 0.001 ? error.toExponential(1) : error.toPrecision(2);
    drawMotion(h);
    drawErrors(at);
    const shown = `${h.toPrecision(3)} s, ${count} steps`;
    result.textContent = `Error after ${data.time} s: ${minus(size)}`;
    const who = `Field: ${FIELDS[chosen.field]}. Rolled out with ${data.labels[chosen.method]}`;
    motion.setAttribute(
      "aria-label",
      `Angle against time, the true motion and the model's. ${who}, step ${shown}. ` +
        `Error after ${data.time} s: ${size}.`,
    );
    plot.setAttribute(
      "aria-label",
      `Error after ${data.time} s against the step, both logarithmic. ${who}. The error is ` +
        `${size} at the chosen step. A dotted upright line marks the step of the data.` +
        (chosen.field === "equation" ? "" : " Dashed: the true equation under the same scheme."),
    );
    return shown;
  }

  return {
    id: "pendulum-step",
    label: "Step",
    last: data.counts.length - 1,
    value: data.counts.indexOf(Math.round(data.time / data.step)),
    before: [choice("field", "Trained with", FIELDS), choice("method", "Rolled out with", data.labels)],
    after: [result, motion, plot],
    draw,
  };
});
