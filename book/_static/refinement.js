/* The slider of chapter 13: all levels become one that can be moved. Its data come from
   refinement_data.js, what all sliders share from slider.js. */
courseSlider("refinement", window.refinementData, (data, { html, svg, ...kit }, redraw) => {
  const PANEL = { width: 640, height: 330, left: 52, right: 12, top: 40, bottom: 34 };
  const REACH = 1.05;
  const NAMES = { grown: "grown", deep: "full depth from the start" };
  const grown = data.nets.grown;
  const counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const x = (depth) => PANEL.left + depth * (PANEL.width - PANEL.left - PANEL.right);

  const place = (top) => (value) => {
    const height = PANEL.height - PANEL.top - PANEL.bottom;
    return top + PANEL.top + ((REACH - value) / (2 * REACH)) * height;
  };

  function axes(top, title, cells) {
    const y = place(top);
    const group = svg("g", { class: "slider-axes" });
    for (const tick of [-1, 0, 1]) {
      group.append(svg("line", { x1: x(0), x2: x(1), y1: y(tick), y2: y(tick) }));
      const at = { x: x(0) - 8, y: y(tick) + 7, "text-anchor": "end" };
      group.append(svg("text", at, kit.minus(tick)));
    }
    for (let k = 0; k <= cells; k += 1) {
      const ends = { x1: x(k / cells), x2: x(k / cells), y1: y(-REACH), y2: y(REACH) };
      group.append(svg("line", { ...ends, class: "refinement-knot" }));
    }
    for (const [depth, anchor, word] of [[0, "start", "0"], [1, "end", "1"], [0.5, "middle", "depth"]]) {
      const at = { x: x(depth), y: y(-REACH) + 24, "text-anchor": anchor };
      group.append(svg("text", at, word));
    }
    group.append(svg("text", { x: x(0), y: top + 26, class: "refinement-title" }, title));
    return group;
  }

  function staircase(row, top, number, factor) {
    const y = place(top);
    const mean = row.reduce((sum, value) => sum + value, 0) / row.length;
    const points = row.flatMap((value, k) =>
      [k, k + 1].map((knot) => [x(knot / row.length), y(mean + factor * (value - mean))]),
    );
    return kit.line(points, `refinement-line refinement-${number}`);
  }

  const picture = kit.drawing(PANEL.width, 2 * PANEL.height);
  const box = html("input", { type: "checkbox", id: "refinement-box", checked: "" });
  box.addEventListener("change", redraw);
  const words = `Enlarge the grown network's differences over depth ${data.magnified} times`;
  const magnify = html("label", { class: "refinement-magnify" }, box, words);
  const heads = ["network", "cells and steps", "test error", "variation over depth"];
  const [table, rows] = kit.table(heads, NAMES);

  function draw(position) {
    const { epoch, cells } = grown[position];
    const shown = { grown: grown[position] };
    shown.deep = data.nets.deep.find((entry) => entry.epoch === epoch);
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
    picture.setAttribute(
      "aria-label",
      `Six weights as functions of depth after ${counted(epoch, "epoch")}. ` +
        `Grown network: ${counted(cells, "cell")}, variation ` +
        `${shown.grown.variation}. Full depth from the start: 8 cells, variation ` +
        `${shown.deep.variation}.`,
    );
    const split = position > 0 && grown[position - 1].cells < cells ? ", just split" : "";
    return `${counted(epoch, "epoch")}, ${counted(cells, "cell")}${split}`;
  }

  return {
    id: "refinement-epoch",
    label: "Training",
    last: grown.length - 1,
    value: grown.length - 1,
    after: [magnify, picture, table],
    draw,
  };
});
