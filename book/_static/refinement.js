/* The slider of chapter 13: replaces the picture of all levels by one that can be moved.
   Without this script the picture stays. The data come from refinement_data.js. */
document.addEventListener("DOMContentLoaded", () => {
  const data = window.refinementData;
  const figure = document.getElementById("refinement-fig-slider");
  if (!data || !figure) return;

  const SVG = "http://www.w3.org/2000/svg";
  const PANEL = { width: 640, height: 330, left: 52, right: 12, top: 40, bottom: 34 };
  const REACH = 1.05;
  const NAMES = { grown: "grown", deep: "full depth from the start" };
  const grown = data.nets.grown;
  const minus = (value) => String(value).replace("-", "\u2212");
  const counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const x = (depth) => PANEL.left + depth * (PANEL.width - PANEL.left - PANEL.right);

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

  const place = (top) => (value) => {
    const height = PANEL.height - PANEL.top - PANEL.bottom;
    return top + PANEL.top + ((REACH - value) / (2 * REACH)) * height;
  };

  function axes(top, title, cells) {
    const y = place(top);
    const group = svg("g", { class: "refinement-axes" });
    for (const tick of [-1, 0, 1]) {
      group.append(svg("line", { x1: x(0), x2: x(1), y1: y(tick), y2: y(tick) }));
      const at = { x: x(0) - 8, y: y(tick) + 7, "text-anchor": "end" };
      group.append(svg("text", at, minus(tick)));
    }
    for (let k = 0; k <= cells; k += 1) {
      const ends = { x1: x(k / cells), x2: x(k / cells), y1: y(-REACH), y2: y(REACH) };
      group.append(svg("line", { ...ends, class: "refinement-knot" }));
    }
    for (const [depth, anchor] of [[0, "start"], [1, "end"]]) {
      const at = { x: x(depth), y: y(-REACH) + 24, "text-anchor": anchor };
      group.append(svg("text", at, String(depth)));
    }
    const middle = { x: x(0.5), y: y(-REACH) + 24, "text-anchor": "middle" };
    group.append(svg("text", middle, "depth"));
    group.append(svg("text", { x: x(0), y: top + 26, class: "refinement-title" }, title));
    return group;
  }

  function staircase(row, top, number, factor) {
    const y = place(top);
    const mean = row.reduce((sum, value) => sum + value, 0) / row.length;
    const points = row.flatMap((value, k) => {
      const height = y(mean + factor * (value - mean)).toFixed(1);
      return [k, k + 1].map((knot) => `${x(knot / row.length).toFixed(1)},${height}`);
    });
    const kind = `refinement-line refinement-${number}`;
    return svg("polyline", { points: points.join(" "), class: kind });
  }

  const size = `0 0 ${PANEL.width} ${2 * PANEL.height}`;
  const picture = svg("svg", { viewBox: size, role: "img" });
  const slider = html("input", {
    type: "range",
    id: "refinement-epoch",
    min: 0,
    max: grown.length - 1,
    step: 1,
    value: grown.length - 1,
  });
  const output = html("output", { for: "refinement-epoch" });
  const box = html("input", { type: "checkbox", id: "refinement-box", checked: "" });
  const heads = ["network", "cells and steps", "test error", "variation over depth"];
  const head = html("tr", {}, ...heads.map((word) => html("th", { scope: "col" }, word)));
  const body = html("tbody");
  const rows = {};
  for (const [name, label] of Object.entries(NAMES)) {
    rows[name] = [html("td"), html("td"), html("td")];
    body.append(html("tr", {}, html("th", { scope: "row" }, label), ...rows[name]));
  }

  function when(position) {
    const { epoch, cells } = grown[position];
    const split = position > 0 && grown[position - 1].cells < cells ? ", just split" : "";
    return `${counted(epoch, "epoch")}, ${counted(cells, "cell")}${split}`;
  }

  function draw() {
    const position = Number(slider.value);
    const shown = { grown: grown[position] };
    shown.deep = data.nets.deep.find((entry) => entry.epoch === shown.grown.epoch);
    picture.replaceChildren();
    Object.entries(shown).forEach(([name, entry], panel) => {
      const top = panel * PANEL.height;
      const factor = name === "grown" && box.checked ? data.magnified : 1;
      const mark = factor > 1 ? `, differences \u00d7 ${factor}` : "";
      picture.append(axes(top, NAMES[name] + mark, entry.cells));
      entry.rows.forEach((row, number) => picture.append(staircase(row, top, number, factor)));
      const percent = `${Number((100 * entry.error).toFixed(1))} %`;
      const values = [entry.cells, percent, entry.variation];
      rows[name].forEach((cell, k) => (cell.textContent = String(values[k])));
    });
    output.textContent = when(position);
    slider.setAttribute("aria-valuetext", when(position));
    picture.setAttribute(
      "aria-label",
      `Six weights as functions of depth after ${counted(shown.grown.epoch, "epoch")}. ` +
        `Grown network: ${counted(shown.grown.cells, "cell")}, variation ` +
        `${shown.grown.variation}. Full depth from the start: 8 cells, variation ` +
        `${shown.deep.variation}.`,
    );
  }

  slider.addEventListener("input", draw);
  box.addEventListener("change", draw);
  const label = html("label", { for: "refinement-epoch" }, "Training: ");
  const widget = html("div", { class: "refinement" });
  widget.append(html("div", { class: "refinement-slider" }, label, slider, output));
  const words = `Enlarge the grown network's differences over depth ${data.magnified} times`;
  widget.append(html("label", { class: "refinement-magnify" }, box, words));
  widget.append(picture, html("table", {}, html("thead", {}, head), body));
  draw();
  for (const image of figure.querySelectorAll("img")) image.hidden = true;
  figure.prepend(widget);
});
