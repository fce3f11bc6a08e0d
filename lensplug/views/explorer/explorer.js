// The explorer: keeps the selection and passes the numbers for it to plotly and CircuitsVis, which draw.
// The numbers are those that packing.py wrote.
(function () {
  "use strict";
  const KINDS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };
  const ORANGE = [[0, "#ffffff"], [0.5, "#f6c992"], [1, "#dd6b20"]];
  const INK = "#22252a", SOFT = "#667080";
  const PARTS = ["the whole image", "tiles", "newline tokens", "tokens without a place"];  // as TOTALS in arrays.py
  const STEPS = 255;  // quantisation of probabilities, and of attention to the prompt

  // plotly interprets some HTML in its texts: tokens are escaped.
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  // CircuitsVis inserts tokens as HTML, and shows them as text in tooltips. A word joiner after characters that
  // would begin a tag or an entity makes both show the same text.
  const harmless = (text) => text.replace(/[<&]/g, "$&\u2060");
  const clipped = (text, length) => {
    const letters = [...text];
    return letters.length > length ? letters.slice(0, length - 1).join("") + "…" : text;
  };
  const percent = (share) => (share > 0 && share < 1e-5 ? "<0.001%" : `${Number((100 * share).toPrecision(3))}%`);
  const range = (n) => Array.from({ length: n }, (_, i) => i);
  // Color by the square root: next to one patch with half of the attention, the others still differ.
  const rooted = (shares, most) => {
    const z = shares.map((one) => one.map((share) => share === null ? null : Math.sqrt(share)));
    return { z, customdata: shares, zmin: 0, zmax: Math.sqrt(most) };
  };
  const FOURTHS = [0, 0.25, 0.5, 0.75, 1];
  const axis = (more) => ({ fixedrange: true, showgrid: false, zeroline: false, ticks: "", ...more });
  const box = (x0, y0, x1, y1, color, width) => ({ type: "rect", x0, y0, x1, y1, line: { color, width } });

  async function open(root) {
    const find = (selector) => root.querySelector(selector);
    const facts = JSON.parse(find(".explorer-facts").textContent);
    const { veil, font, mono } = facts.style;  // from style.py
    const buffer = await window.lensplug.unpack(find(".explorer-data").textContent);
    const data = {};
    for (const [name, { type, shape, at }] of Object.entries(facts.arrays)) {
      data[name] = new KINDS[type](buffer, at, shape.reduce((a, b) => a * b, 1));
    }
    const texts = JSON.parse(new TextDecoder().decode(data.texts));
    const [, layers, heads, tokens] = facts.arrays.attention.shape;
    const [entries, ranks] = facts.arrays.probability.shape;
    const [, rows, columns] = facts.arrays.cells.shape;
    const plots = { picture: find(".picture"), lens: find(".lens .plot"), heads: find(".heads .plot") };
    const state = { answer: 0, layer: facts.start.layer, head: facts.start.head, view: facts.start.view,
      hovered: null, pinned: facts.start.patch };

    // Access to the numbers. Head -1 is the mean of all heads.
    const patch = () => state.hovered ?? state.pinned;
    const row = (layer, head) => (state.answer * layers + layer) * heads + head;
    const over = (head, value) => {
      if (head >= 0) return value(head);
      return range(heads).reduce((sum, one) => sum + value(one), 0) / heads;
    };
    const attention = (layer, head, token) => over(head, (one) => {
      const at = row(layer, one);
      return data.largest[at] * (data.attention[at * tokens + token] / facts.steps) ** 2;
    });
    const total = (layer, head, part) => over(head, (one) => data.totals[row(layer, one) * 4 + part]);
    const onPicture = (layer, head) => [0, 1, 2, 3].reduce((sum, part) => sum + total(layer, head, part), 0);
    const onChip = (chip) => over(state.head, (one) => {
      const at = row(state.layer, one);
      return data.chip_largest[at] * (data.chip[at * facts.chips.length + chip] / STEPS) ** 2;
    });
    const guess = (entry, rank, token) => {
      const size = entries * ranks * tokens, at = (entry * ranks + rank) * tokens + token;
      const number = data.tokens[at] + 256 * data.tokens[at + size] + 65536 * data.tokens[at + 2 * size];
      return { text: texts[number], probability: (data.probability[at] / STEPS) ** 2 };
    };
    const drawn = (view, cell) => data.cells[(view === "tiles" ? rows * columns : 0) + cell] - 1;
    const tokenAt = (cell) => {  // if both views are shown, tiles are on top: they are finer
      const tile = state.view === "base" ? -1 : drawn("tiles", cell);
      return tile >= 0 || state.view === "tiles" ? tile : drawn("base", cell);
    };
    const edges = (token) => [...data.boxes.subarray(4 * token, 4 * token + 4)];

    // Descriptions.
    const headName = (layer, head) => `layer ${layer}, ${head < 0 ? `mean of ${heads} heads` : `head ${head}`}`;
    const answerName = () => `“${facts.answers[state.answer].text}”`;
    const patchName = (token) => {
      const view = data.view[token] ? `tile ${data.view[token]}` : "whole image";
      return `patch ${token} (${view}, position ${data.positions[token]})`;
    };

    function figure(plot, traces, height, margin, layout) {
      return Plotly.react(plot, traces, {
        height, margin, font: { family: font, size: 11, color: INK }, paper_bgcolor: "white", plot_bgcolor: "white",
        dragmode: false, hovermode: "closest", hoverlabel: { font: { family: font } }, uirevision: 1, ...layout,
      }, { displayModeBar: false, responsive: false, doubleClick: false, scrollZoom: false });
    }

    function drawPicture() {
      const values = range(tokens).map((token) => attention(state.layer, state.head, token));
      const value = (cell) => {
        const shown = state.view === "both" ? ["base", "tiles"] : [state.view];
        const there = shown.map((view) => drawn(view, cell)).filter((token) => token >= 0);
        return there.length ? there.reduce((sum, token) => sum + values[token], 0) / there.length : null;
      };
      const shares = range(rows).map((y) => range(columns).map((x) => value(y * columns + x)));
      const most = shares.flat().reduce((a, b) => Math.max(a, b), 0) || 1;
      const side = plots.picture.clientWidth;
      const height = Math.round(Math.min(580, side * facts.height / facts.width)) + 34;
      figure(plots.picture, [{
        type: "heatmap", x: data.x, y: data.y, ...rooted(shares, most), colorscale: veil, hoverongaps: false,
        hovertemplate: "%{customdata:.3~%}<extra></extra>",
        colorbar: { orientation: "h", thickness: 8, len: 0.92, y: 0, yanchor: "top", ypad: 6, outlinewidth: 0,
          tickvals: FOURTHS.map((part) => part * Math.sqrt(most)),
          ticktext: FOURTHS.map((part) => percent(part * part * most)), tickfont: { color: SOFT, size: 10 } },
      }], height, { l: 0, r: 0, t: 0, b: 34, autoexpand: false }, {
        images: [{ source: facts.picture, xref: "x", yref: "y", x: 0, y: 0, sizex: facts.width,
          sizey: facts.height, sizing: "stretch", layer: "below" }],
        xaxis: axis({ range: [0, facts.width], visible: false, constrain: "domain" }),
        yaxis: axis({ range: [facts.height, 0], visible: false, scaleanchor: "x", constrain: "domain" }),
        shapes: outlines(),
      });
      const name = headName(state.layer, state.head);
      const parts = range(4).map((part) => ({ part, share: total(state.layer, state.head, part) }))
        .filter(({ part, share }) => share > 0 || (part === 2 && facts.newlines))
        .map(({ part, share }) => `${percent(share)} on ${PARTS[part]}`
          + (part === 2 ? `, ${facts.newlines} of them, which only mark row ends` : ""));
      find(".seen h3").textContent = `Where ${name}${state.head < 0 ? "," : ""} looked`;
      find(".seen .said").textContent = `Fraction of attention on each patch, from where ${answerName()} was written; `
        + `colour by its square root. On the picture in all: ${percent(onPicture(state.layer, state.head))}`
        + (parts.length ? ` (${parts.join("; ")}).` : ".");
    }

    function outlines() {
      if (patch() === null) return [];
      const around = edges(patch());
      const dash = state.hovered !== null && state.hovered !== state.pinned ? "#ffffff" : "#ffb454";
      return [box(...around, INK, 4), box(...around, dash, 2)];
    }

    const top = 8, bottom = 36;
    const across = () => Math.min(30, Math.max(13, Math.round(470 / entries)));  // pixels of a layer, in both panels
    const ticks = range(entries).map((entry) => entry - 1).filter((y) => y < 0 || y % Math.ceil(entries / 40) === 0);
    // Where the two panels stand side by side, a layer is on the same line in both.
    const aligned = () => find(".lens").offsetTop === find(".heads").offsetTop;
    const byLayer = (title, skipped) => axis({
      range: [layers - 0.5, aligned() || !skipped ? -1.5 : -0.5], title: { text: title, standoff: 6 },
      ticklabelstandoff: 4, tickvals: ticks.slice(skipped),
      ticktext: ticks.slice(skipped).map((y) => facts.entries[y + 1]),
    });

    function drawLens() {
      const token = patch(), nothing = { text: "", probability: null };
      const all = range(entries).map((entry) => range(ranks).map((rank) =>
        token === null ? nothing : guess(entry, rank, token)));
      const cells = (value) => all.map((one, entry) => one.map((cell) => value(cell, facts.entries[entry])));
      const told = (cell, entry) => `after ${entry}: <b>${escaped(cell.text)}</b> ${cell.probability?.toFixed(4)}`;
      const letters = Math.max(4, Math.floor((plots.lens.clientWidth - 64) / ranks / 6.9) - 1);
      const numbers = range(ranks).map((rank) => rank + 1);
      figure(plots.lens, [{
        type: "heatmap", x: numbers, y: range(entries).map((entry) => entry - 1), z: cells((cell) => cell.probability),
        text: cells((cell) => escaped(clipped(cell.text, letters))), texttemplate: "%{text}",
        hovertext: cells(told), hovertemplate: "%{hovertext}<extra></extra>",
        textfont: { family: mono, size: 11, color: INK },
        colorscale: ORANGE, zmin: 0, zmax: 1, xgap: 1, ygap: 1, showscale: false,
      }], across() * entries + top + bottom, { l: 56, r: 4, t: top, b: bottom }, {
        xaxis: axis({ title: { text: "most probable tokens, first to last", standoff: 4 }, tickvals: numbers }),
        yaxis: byLayer("after layer", 0),
      });
      find(".lens .said").textContent = token === null ? "Point at a patch to see its logit lens in each layer."
        : `Logit lens at ${patchName(token)}: the next token by the residual stream after each layer `
        + `(${facts.convention}). Colour is probability, from 0 (white) to 1 (orange).`;
    }

    function drawHeads() {
      const token = patch();
      const value = (layer, head) => token === null ? onPicture(layer, head) : attention(layer, head, token);
      const shares = range(layers).map((layer) => range(heads).map((head) => value(layer, head)));
      const mean = shares.map((one) => [one.reduce((sum, share) => sum + share, 0) / heads]);
      const most = shares.flatMap((one, layer) => one.map((share, head) => ({ layer, head, share })))
        .sort((a, b) => b.share - a.share).slice(0, 5);
      const full = most[0].share || 1;
      const common = (values, label) => ({ type: "heatmap", y0: 0, dx: 1, dy: 1, ...rooted(values, full),
        colorscale: ORANGE, xgap: 1, ygap: 1, showscale: false,
        hovertemplate: `layer %{y}, ${label}: %{customdata:.3~%}<extra></extra>` });
      const at = state.head < 0 ? heads + 0.5 : state.head, step = Math.ceil(heads / 16);
      const named = range(heads).filter((head) => head % step === 0);
      figure(plots.heads, [
        { ...common(shares, "head %{x}"), x0: 0 },
        { ...common(mean, "mean of heads"), x0: heads + 0.5 },
      ], across() * (aligned() ? entries : layers) + top + bottom, { l: 44, r: 16, t: top, b: bottom }, {
        xaxis: axis({ range: [-0.5, heads + 1], title: { text: "head", standoff: 4 }, tickangle: 0,
          tickvals: [...named, heads + 0.5], ticktext: [...named, "mean"] }),
        yaxis: byLayer("layer", 1),
        shapes: [box(at - 0.5, state.layer - 0.5, at + 0.5, state.layer + 0.5, INK, 2)],
      });
      const none = token === null;
      find(".heads h3").textContent = none ? "How much each head looks at the picture" : "Which heads look here";
      find(".heads .said").textContent = `Fraction of the attention from where ${answerName()} was written, on `
        + `${none ? "the whole picture" : patchName(token)}, by layer and head; colour by its square root, `
        + `full orange is ${percent(full)}. Click a cell to see that head over the picture. The five that look most:`;
      find(".most").replaceChildren(...most.map((one) => button(one)));
    }

    function button({ layer, head, share }) {
      const made = document.createElement("button");
      made.type = "button";
      made.append(`L${layer}H${head} `, Object.assign(document.createElement("span"), { textContent: percent(share) }));
      made.classList.toggle("chosen", layer === state.layer && head === state.head);
      made.onclick = () => change({ layer, head });
      return made;
    }

    function drawPrompt() {
      const values = facts.chips.map((_, chip) => Number(onChip(chip).toPrecision(3)));
      // The first token and the image often hold most of the mass: color saturates at the third largest value.
      const full = Math.max(0.005, [...values].sort((a, b) => b - a)[2] ?? 1);
      const place = Object.assign(document.createElement("div"), { id: `${root.id}-tokens` });
      find(".tokens").replaceChildren(place);
      CircuitsVis.render(place.id, CircuitsVis.ColoredTokens, { tokens: facts.chips.map(harmless), values,
        minValue: 0, maxValue: full, positiveColor: "#ee9a52", negativeColor: "#2b5c8a" });
      find(".prompt .said").textContent = `Fraction of attention on each token of prompt and answer, `
        + `${headName(state.layer, state.head)}; the picture counts as one. Full colour is ${percent(full)} or more; `
        + "hover for the number.";
    }

    function showChoice() {
      root.querySelectorAll("[data-answer]").forEach((chip, at) => {
        chip.setAttribute("aria-pressed", at === state.answer);
      });
      root.querySelectorAll("[type=radio]").forEach((radio) => { radio.checked = radio.value === state.view; });
      find("[type=range]").value = state.layer;
      find("output").textContent = state.layer;
      find("select").value = state.head;
    }

    // Only what changed is redrawn, once for all changes within 10 ms. (Not at the next animation frame: background
    // pages have none.)
    const LOOKING = ["answer", "layer", "head", "view"], POINTING = ["hovered", "pinned"];
    let changed = null;
    function draw() {
      const among = (names) => changed === null || names.some((name) => changed.has(name));
      if (among(LOOKING)) { drawPicture(); drawPrompt(); showChoice(); }
      else Plotly.relayout(plots.picture, { shapes: outlines() });
      if (among(POINTING)) drawLens();
      drawHeads();
      changed = null;
    }
    function change(changes) {
      const names = Object.keys(changes).filter((name) => state[name] !== changes[name]);
      if (!names.length) return;
      Object.assign(state, changes);
      if (changed) { names.forEach((name) => changed.add(name)); return; }
      changed = new Set(names);
      setTimeout(draw, 10);
    }

    const hover = (token) => change({ hovered: token });
    const pin = (token) => change({ pinned: token === state.pinned ? null : token, hovered: null });
    const between = (lines, value) => Math.max(0, lines.findLastIndex((line) => line <= value));
    function choose(view) {  // the pinned patch moves to the patch at the same place
      change({ view, hovered: null });
      if (state.pinned === null) return;
      const [x0, y0, x1, y1] = edges(state.pinned);
      const token = tokenAt(between(data.y, (y0 + y1) / 2) * columns + between(data.x, (x0 + x1) / 2));
      if (token >= 0) change({ pinned: token });
    }
    function move(dx, dy) {
      const from = patch() ?? facts.start.patch, [x0, y0, x1, y1] = edges(from);
      let x = between(data.x, (x0 + x1) / 2), y = between(data.y, (y0 + y1) / 2);
      while (x >= 0 && x < columns && y >= 0 && y < rows) {
        const token = tokenAt(y * columns + x);
        if (token >= 0 && token !== from) { change({ pinned: token, hovered: null }); return; }
        x += dx;
        y += dy;
      }
    }

    draw();
    const cellOf = ({ points: [{ pointNumber: [y, x] }] }) => y * columns + x;
    // plotly would capture every touch, and a finger could not scroll from a plot. Without touch events a tap still
    // arrives as a mouse move and click: it pins and hovers nothing.
    let touched = false;
    for (const kind of ["pointerdown", "pointermove"]) {
      root.addEventListener(kind, (event) => { touched = event.pointerType === "touch"; }, { capture: true });
    }
    for (const plot of Object.values(plots)) {
      plot.addEventListener("touchstart", (event) => event.stopPropagation(), { capture: true, passive: true });
    }
    plots.picture.on("plotly_hover", (event) => { if (!touched) hover(tokenAt(cellOf(event))); });
    plots.picture.on("plotly_unhover", () => hover(null));
    plots.picture.on("plotly_click", (event) => {
      plots.picture.focus({ preventScroll: true, focusVisible: false });
      pin(tokenAt(cellOf(event)));
    });
    plots.heads.on("plotly_click", ({ points: [{ curveNumber, pointNumber: [layer, head] }] }) =>
      change({ layer, head: curveNumber ? -1 : head }));
    root.querySelectorAll("[data-answer]").forEach((chip, answer) => { chip.onclick = () => change({ answer }); });
    root.querySelectorAll("[type=radio]").forEach((radio) => { radio.onchange = () => choose(radio.value); });
    find("[type=range]").oninput = (event) => change({ layer: Number(event.target.value) });
    find("select").onchange = (event) => change({ head: Number(event.target.value) });
    document.addEventListener("keydown", (event) => {
      const here = plots.picture.matches(":hover") || root.contains(document.activeElement);
      if (!here || ["INPUT", "SELECT"].includes(document.activeElement.tagName)) return;
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (step) { event.preventDefault(); move(...step); }
      if (event.key === "Escape") change({ pinned: null, hovered: null });
    });
    let width = root.clientWidth, resized = null;
    new ResizeObserver(() => {
      if (root.clientWidth === width) return;
      width = root.clientWidth;
      clearTimeout(resized);
      resized = setTimeout(() => { changed = null; draw(); }, 80);
    }).observe(root);
    root.explorer = { state, facts, hover, pin, move, choose, change, attention, guess, total, plots };
    window.lensplugExplorer ??= root.explorer;  // the first on the page, for a console or a test
  }

  for (const root of document.querySelectorAll(".explorer")) open(root).catch((error) => {
    root.prepend(`The explorer could not be drawn (${error}).`);
    throw error;
  });
})();
