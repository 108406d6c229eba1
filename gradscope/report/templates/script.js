"use strict";
// Everything here adds to a page that says the same without it.
(() => {
  const make = (tag, props, ...inside) => {
    const made = Object.assign(document.createElement(tag), props);
    made.append(...inside);
    return made;
  };

  // --- tables: a click on a head sorts by it ---
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => {
          const cell = row.cells[column];
          return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
        };
        const order = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (typeof x === "number" && typeof y === "number") {
            // What is unknown stays at the end, whichever way it is sorted.
            if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
            return down ? y - x : x - y;
          }
          return (down ? -1 : 1) * String(x).localeCompare(String(y), undefined, { numeric: true });
        };
        body.append(...[...body.rows].sort(order));
      });
    });
  }

  // --- figures ---
  const hidden = new Set();
  const figures = [...document.querySelectorAll("figure[data-hover]")].map((figure) => {
    const views = [...figure.querySelectorAll("[data-view]")].map((box) => {
      const svg = box.querySelector("svg");
      const known = JSON.parse(box.dataset.axes);
      const lines = known.lines.map(([id, name, axes]) => {
        const group = document.getElementById(`${svg.id}-${id}`);
        const band = document.getElementById(`${svg.id}-${id}-band`);
        return { name, axes, all: [group, band].filter(Boolean), path: group && group.querySelector("path") };
      }).filter((line) => line.path);
      return { box, svg, lines, axes: known.axes };
    });
    return { figure, views };
  });

  const points = (line) => {
    if (!line.points) {
      const numbers = (line.path.getAttribute("d").match(/-?[\d.]+(?:e-?\d+)?/g) || []).map(Number);
      line.points = [];
      for (let i = 0; i + 1 < numbers.length; i += 2) line.points.push([numbers[i], numbers[i + 1]]);
    }
    return line.points;
  };
  const heightAt = (line, x) => {
    const all = points(line);
    for (let i = 0; i + 1 < all.length; i++) {
      const [[x0, y0], [x1, y1]] = [all[i], all[i + 1]];
      if ((x0 <= x && x <= x1) || (x1 <= x && x <= x0)) return x1 === x0 ? y0 : y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
    }
    return null;
  };
  const value = ([low, high, log], share) =>
    log ? 10 ** (Math.log10(low) + share * (Math.log10(high) - Math.log10(low))) : low + share * (high - low);
  const short = (number) => {
    if (number === 0) return "0";
    const size = Math.abs(number);
    return size >= 1e-3 && size < 1e5 ? String(Number(number.toPrecision(3))) : number.toExponential(1).replace("+", "");
  };

  const hover = (view, figure) => {
    const tip = make("div", { className: "tip", hidden: true });
    tip.setAttribute("aria-hidden", "true");
    figure.append(tip);
    view.svg.addEventListener("pointerleave", () => { tip.hidden = true; });
    view.svg.addEventListener("pointermove", (event) => {
      const frame = view.svg.getBoundingClientRect();
      const [width, height] = view.svg.getAttribute("viewBox").split(" ").slice(2).map(Number);
      const x = ((event.clientX - frame.left) / frame.width) * width;
      const y = ((event.clientY - frame.top) / frame.height) * height;
      const at = view.axes.findIndex(({ box }) => x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3]);
      let best = null;
      for (const line of view.lines) {
        if (line.axes !== at || hidden.has(line.name)) continue;
        const found = heightAt(line, x);
        if (found !== null && (!best || Math.abs(found - y) < Math.abs(best.y - y))) best = { y: found, line };
      }
      tip.hidden = !best;
      if (!best) return;
      const { box, x: xs, y: ys, label } = view.axes[at];
      const across = value(xs, (x - box[0]) / (box[2] - box[0]));
      const up = value(ys, (box[3] - best.y) / (box[3] - box[1]));
      tip.textContent = `${best.line.name}: ${short(up)} at ${label} ${xs[2] ? short(across) : Math.round(across)}`;
      const outer = figure.getBoundingClientRect();
      tip.style.left = `${Math.min(event.clientX - outer.left + 12, outer.width - 150)}px`;
      tip.style.top = `${event.clientY - outer.top + 12}px`;
    });
  };

  const fade = (line, opacity) => line.all.forEach((group) => { group.style.opacity = opacity; });
  const shade = () => {
    for (const { figure, views } of figures) {
      for (const view of views) {
        for (const line of view.lines) fade(line, hidden.has(line.name) ? 0.06 : "");
      }
      for (const chip of figure.querySelectorAll(".tools button[data-line]")) {
        chip.setAttribute("aria-pressed", String(!hidden.has(chip.dataset.line)));
      }
    }
  };

  for (const { figure, views } of figures) {
    views.forEach((view) => hover(view, figure));
    const tools = make("div", { className: "tools" });
    if (views.length > 1) {
      const button = make("button", { type: "button" });
      let shown = 0;
      const show = () => {
        views.forEach(({ box }, i) => { box.hidden = i !== shown; });
        button.textContent = `show ${views[(shown + 1) % views.length].box.dataset.view} values`;
      };
      button.addEventListener("click", () => { shown = (shown + 1) % views.length; show(); });
      show();
      tools.append(button);
    }
    const names = [...new Set(views.flatMap(({ lines }) => lines.map(({ name }) => name)))];
    const steps = names.filter((name) => /^step \d+$/.test(name)).sort((a, b) => a.slice(5) - b.slice(5));
    if (steps.length > 2) {
      const said = make("output", {}, "all steps");
      const range = make("input", { type: "range", min: 0, max: steps.length, value: steps.length });
      range.addEventListener("input", () => {
        const one = steps[range.value];
        said.textContent = one || "all steps";
        for (const line of views.flatMap(({ lines }) => lines)) {
          fade(line, !one || line.name === one ? "" : 0.12);
        }
      });
      tools.append(make("label", {}, "training step ", range, said));
    } else if (names.length > 1 && names.length <= 24) {
      // A row of names is at hand; rows of them are folded, so that they push nothing away.
      const rows = names.length > 4 ? make("details", {}, make("summary", {}, "fade lines")) : tools;
      if (rows !== tools) tools.append(rows);
      for (const name of names) {
        const chip = make("button", { type: "button" }, name);
        chip.dataset.line = name;
        chip.setAttribute("aria-pressed", "true");
        chip.addEventListener("click", () => {
          if (!hidden.delete(name)) hidden.add(name);
          shade();
        });
        rows.append(chip);
      }
    }
    if (tools.childNodes.length) figure.querySelector("figcaption").before(tools);
  }

  // --- print: what is folded is not to be lost ---
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open], .unprinted)")];
    folded.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
})();
