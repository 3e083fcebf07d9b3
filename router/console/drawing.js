// The drawing of layers, nodes and flow, as SVG.

import { attribute, refill, svg } from "./dom.js";
import { duration, layers, percent, plural, rate } from "./format.js";
import { layout, linksOf, rowsOf } from "./layout.js";
import { ROUTER, range } from "./model.js";

export class Drawing {
  constructor(box) {
    this.box = box;
    this.open = new Set();
    this.last = null;
    new ResizeObserver(() => this.last && this.draw(...this.last)).observe(box);
    box.addEventListener("click", (event) => this.toggle(event));
    for (const kind of ["pointerover", "pointerleave"]) {
      box.addEventListener(kind, (event) => this.point(event));
    }
  }

  /** `nodes` are those that the filter lets through. */
  draw(state, nodes, grouped) {
    this.last = [state, nodes, grouped];
    const width = Math.max(280, Math.floor(this.box.clientWidth));
    const rows = rowsOf(nodes, grouped, this.open);
    const links = linksOf(rows, state.links);
    const sign = JSON.stringify([width, rows, links, state.numLayers, state.flow], rounded);
    refill(this.box, sign, () => [
      picture(layout(rows, links, state.numLayers, width, state.flow), state),
    ]);
  }

  toggle(event) {
    const row = event.target.closest("[data-alike]");
    if (!row || !this.last) return;
    const { alike } = row.dataset;
    if (!this.open.delete(alike)) this.open.add(alike);
    this.draw(...this.last);
  }

  /** What a row is linked with stands out while it is pointed at. */
  point(event) {
    const key = event.type === "pointerover" ? event.target.closest("[data-row]")?.dataset.row : null;
    attribute(this.box, "data-pointed", key !== null && key !== undefined);
    for (const line of this.box.querySelectorAll("[data-from]")) {
      const near = line.dataset.from === key || line.dataset.to === key;
      line.classList.toggle("near", near);
    }
  }
}

/** What is not seen is no reason to draw anew. */
function rounded(name, value) {
  if (["heardS", "kv", "busy", "stepS", "expectedS", "tokensPerS", "waiting", "crossing"].includes(name)) {
    return undefined;
  }
  return typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(3)) : value;
}

function picture(drawn, state) {
  const { width, height } = drawn;
  return svg(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary(drawn, state) },
    axis(drawn),
    drawn.regions.map((region) => regionHead(region, drawn)),
    rails(drawn),
    drawn.links.map(line),
    drawn.rows.map((row) => bar(row, drawn)),
    drawn.rows.map((row) => words(row, drawn)),
    drawn.links.length <= 12 && !drawn.dense ? drawn.links.map((link) => figure(link, drawn)) : [],
  );
}

function summary(drawn, state) {
  const count = drawn.rows.reduce((sum, row) => sum + row.nodes.length, 0);
  const places = drawn.regions.length > 1 ? ` in ${drawn.regions.length} regions` : "";
  return (
    `${plural(count, "node")}${places} over ${plural(state.numLayers, "layer")}; max flow ` +
    `${rate(state.flow)} tokens/s. ${state.cap ? `${state.cap}. ` : ""}The tables of nodes and links have every figure.`
  );
}

function axis(drawn) {
  const y = drawn.top - 12;
  return svg(
    "g",
    { class: "axis" },
    drawn.narrow ? [] : svg("text", { x: 0, y }, "layer"),
    drawn.ticks.map((tick) => [
      svg("line", { x1: tick.x, x2: tick.x, y1: y + 6, y2: drawn.height }),
      svg("text", { x: tick.x, y }, tick.layer),
    ]),
    drawn.narrow ? [] : svg("text", { x: drawn.width, y, class: "end" }, "flow of capacity, tokens/s"),
  );
}

function rails(drawn) {
  const used = (side) => drawn.links.filter((link) => !link[side]);
  const rail = (x, lines, y, anchor) => {
    if (!lines.length) return [];
    const heights = lines.map((link) => link[y]);
    const top = Math.min(...heights) - 9;
    const bottom = Math.max(...heights) + 9;
    return [
      svg("line", { class: "rail", x1: x, x2: x, y1: top, y2: bottom }),
      svg("text", { class: `rail-name ${anchor}`, x, y: drawn.top - 32 }, "router"),
    ];
  };
  return svg(
    "g",
    {},
    rail(drawn.railIn, used("source"), "ya", "start"),
    rail(drawn.railOut, used("target"), "yb", "end"),
  );
}

function regionHead(region, drawn) {
  const nodes = region.rows.reduce((sum, row) => sum + row.nodes.length, 0);
  const y = region.y + drawn.region - 12;
  return svg(
    "g",
    { class: "region" },
    svg("line", { x1: 0, x2: drawn.width, y1: region.y + 4, y2: region.y + 4 }),
    svg("text", { x: 0, y },
      svg("tspan", { class: "name" }, region.name || "no region"),
      svg("tspan", { dx: 8 }, plural(nodes, "node"))),
  );
}

function useClass(use, caps) {
  if (caps) return "use-high";
  if (use === null) return "use-none";
  return use >= 0.9 ? "use-high" : use >= 0.6 ? "use-mid" : "use-low";
}

function bar(row, drawn) {
  const y = row.middle - drawn.bar / 2;
  const rect = (x, until, cls) =>
    svg("rect", { class: cls, x, y, width: Math.max(3, until - x), height: drawn.bar, rx: drawn.dense ? 2 : 4 });
  const shapes = [];
  if (row.x !== null) shapes.push(rect(row.x, row.until, `bar ${useClass(row.use, row.caps)} look-${row.look}`));
  const next = range(row.next);
  if (next) shapes.push(ghost(row, next, drawn));
  return svg("g", { class: "row", "data-row": row.key, ...alike(row) }, shapes, svg("title", {}, told(row)));
}

function ghost(row, next, drawn) {
  const x = drawn.xOf(next[0]);
  const until = drawn.untilOf(next[1]);
  return svg("rect", {
    class: "bar next", x, y: row.middle - drawn.bar / 2 - 3, width: Math.max(3, until - x),
    height: drawn.bar + 6, rx: 5,
  });
}

function alike(row) {
  return row.first === null ? {} : { "data-alike": row.alike };
}

function told(row) {
  const held = row.first === null ? "no layers" : `layers ${layers(row.first, row.end)}`;
  const names = row.nodes.slice(0, 12).map((node) => node.name).join(", ");
  const more = row.nodes.length > 12 ? ` and ${row.nodes.length - 12} more` : "";
  const flow = row.rate > 0 ? `; ${rate(row.flow)} of ${rate(row.rate)} tokens/s (${percent(row.use)})` : "";
  return `${names}${more}: ${row.kind}, ${held}, ${row.told}${flow}${row.caps ? "; caps the flow" : ""}`;
}

/** As much of a text as fits, by a guess at the width of its letters. */
function fit(text, pixels, letter) {
  const most = Math.max(3, Math.floor(pixels / letter));
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}

function words(row, drawn) {
  const share = row.rate > 0 ? `${rate(row.flow)} of ${rate(row.rate)}` : "";
  const made = [];
  const about = [row.nodes.length > 1 ? "" : row.kind, row.brief].filter(Boolean).join(" · ");
  if (drawn.narrow) {
    const y = row.middle - drawn.bar / 2 - 6;
    made.push(svg("text", { class: "label", x: 8, y },
      svg("tspan", { class: "name" }, fit(row.label, drawn.width * 0.34, 7)),
      svg("tspan", { class: `about look-${row.look}`, dx: 6 }, fit(about, drawn.width * 0.3, 6.4))));
    made.push(svg("text", { class: "share end", x: drawn.width - 8, y }, share));
  } else if (drawn.dense) {
    const name = fit(row.label, about ? 92 : 160, 6.6);
    made.push(svg("text", { class: "label small", x: 0, y: row.middle + 4 },
      svg("tspan", { class: "name" }, name),
      svg("tspan", { class: `about look-${row.look}`, dx: 6 }, fit(about, 160 - name.length * 6.6, 6.2))));
    made.push(svg("text", { class: "share end small", x: drawn.width, y: row.middle + 4 }, share));
  } else {
    made.push(svg("text", { class: "label name", x: 0, y: row.middle - 2 }, fit(row.label, 168, 7.6)));
    made.push(svg("text", { class: `label about look-${row.look}`, x: 0, y: row.middle + 14 }, fit(about, 168, 6.4)));
    made.push(svg("text", { class: "share end", x: drawn.width, y: row.middle - 2 }, share));
    made.push(svg("text", { class: "about end", x: drawn.width, y: row.middle + 14 },
      row.caps ? "caps the flow" : row.use === null ? "" : percent(row.use)));
  }
  if (row.x !== null && row.until - row.x > 34) {
    const cls = `inside ${drawn.dense ? "small" : ""}`;
    const x = (row.x + row.until) / 2;
    made.push(svg("text", { class: cls, x, y: row.middle + (drawn.dense ? 3.5 : 4.5) }, layers(row.first, row.end)));
  }
  return svg("g", { class: "words", "data-row": row.key, ...alike(row) }, made, svg("title", {}, told(row)));
}

function line(link) {
  const cls = `link ${useClass(link.use, link.caps)} ${link.trouble ? "trouble" : ""}`;
  const end = (key, row) => (key === ROUTER ? "router" : row.label);
  const capacity = link.capacity === null ? "capacity not measured" : `of ${rate(link.capacity)} (${percent(link.use)})`;
  const trip = link.roundTripS > 0 ? `; round trip ${duration(link.roundTripS)}` : "";
  const many = link.count > 1 ? ` over ${link.count} links` : "";
  return svg(
    "path",
    { class: cls, d: link.path, "stroke-width": link.thick.toFixed(1), "data-from": link.from, "data-to": link.to },
    svg("title", {},
      `${end(link.from, link.source)} → ${end(link.to, link.target)}: ${rate(link.flow)} tokens/s ` +
      `${capacity}${many}${trip}${link.caps ? "; caps the flow" : ""}${link.trouble ? "; not in use: down or closed" : ""}`),
  );
}

/** The flow on its line, between two rows, where no bar hides it; above the line if it is level. */
function figure(link, drawn) {
  if (link.flow <= 0 || drawn.narrow || Math.abs(link.xb - link.xa) < 30) return [];
  return svg("text", { class: "figure", x: link.wordsX, y: link.wordsY }, rate(link.flow));
}
