// Small line charts of the last minutes, from the router's own ten-second slots.

import { el, refill, svg } from "./dom.js";
import { duration, rate } from "./format.js";

const HEIGHT = 86;
const LEFT = 52;
const BOTTOM = 16;
const TOP = 8;

const CHARTS = [
  {
    title: "Time to first token",
    lines: [
      ["median", (slot) => slot.ttft.p50],
      ["99th of 100", (slot) => slot.ttft.p99],
    ],
    now: (router) => [router.ttft.p50, router.ttft.p99],
    show: duration,
  },
  {
    title: "Between tokens",
    lines: [
      ["median", (slot) => slot.itl.p50],
      ["99th of 100", (slot) => slot.itl.p99],
    ],
    now: (router) => [router.itl.p50, router.itl.p99],
    show: duration,
  },
  {
    title: "Output",
    lines: [["tokens/s", (slot, length) => slot.tokens / length]],
    now: (router) => [router.tokensPerS],
    show: rate,
    filled: true,
  },
];

export class Charts {
  constructor(box) {
    this.box = box;
    this.router = null;
    this.parts = CHARTS.map((chart) => {
      const plot = el("div", { class: "plot" });
      const key = el("p", { class: "chart-key" });
      return { chart, plot, key, figure: el("figure", {}, el("figcaption", {}, chart.title), key, plot) };
    });
    box.append(...this.parts.map((part) => part.figure));
    new ResizeObserver(() => this.router && this.draw(this.router)).observe(box);
  }

  draw(router) {
    this.router = router;
    for (const { chart, plot, key } of this.parts) {
      const values = chart.now(router);
      const said = chart.lines.map(([name], at) => `${chart.show(values[at])} ${name}`);
      refill(key, said.join("\n"), () =>
        chart.lines.flatMap(([name], at) => [
          el("span", { class: `dot line-${at}`, "aria-hidden": "true" }),
          el("span", {}, el("strong", {}, chart.show(values[at])), ` ${name}`),
        ]),
      );
      const width = Math.max(180, Math.floor(plot.clientWidth));
      const now = router.now ?? Date.now() / 1000;
      const sign = JSON.stringify([width, Math.floor(now / 5), router.history.at(-1)]);
      refill(plot, sign, () => [draw(chart, router.history, now, router.overS, width, said)]);
    }
  }
}

function draw(chart, slots, now, over, width, said) {
  const length = slotLength(slots);
  const points = chart.lines.map(([, value]) =>
    slots
      .map((slot) => [slot.at + length / 2, value(slot, Math.max(1, Math.min(length, now - slot.at)))])
      .filter(([at, y]) => y !== null && now - at < over),
  );
  const most = ceiling(Math.max(0, ...points.flat().map(([, y]) => y)));
  const x = (at) => LEFT + (1 - (now - at) / over) * (width - LEFT - 4);
  const y = (value) => TOP + (1 - value / most) * (HEIGHT - TOP - BOTTOM);
  const made = [0, 0.5, 1].map((share) => [
    svg("line", { class: share ? "grid" : "base", x1: LEFT, x2: width, y1: y(most * share), y2: y(most * share) }),
    share === 0.5 ? [] : svg("text", { x: LEFT - 6, y: y(most * share) + 3.5, class: "end" }, most > 1e-9 && share ? chart.show(most) : "0"),
  ]);
  points.forEach((line, at) => {
    for (const part of unbroken(line, length)) {
      const d = part.map(([t, v], i) => `${i ? "L" : "M"}${x(t).toFixed(1)} ${y(v).toFixed(1)}`).join("");
      if (chart.filled) {
        const foot = `L${x(part.at(-1)[0]).toFixed(1)} ${y(0)}L${x(part[0][0]).toFixed(1)} ${y(0)}Z`;
        made.push(svg("path", { class: `area line-${at}`, d: d + foot }));
      }
      if (part.length > 1) made.push(svg("path", { class: `line line-${at}`, d }));
      else made.push(svg("circle", { class: `spot line-${at}`, cx: x(part[0][0]), cy: y(part[0][1]), r: 2 }));
    }
  });
  made.push(svg("text", { x: LEFT, y: HEIGHT - 3 }, `${duration(over)} ago`));
  made.push(svg("text", { x: width - 2, y: HEIGHT - 3, class: "end" }, "now"));
  if (!slots.length) made.push(svg("text", { x: (LEFT + width) / 2, y: HEIGHT / 2, class: "middle" }, "no tokens yet"));
  return svg(
    "svg",
    { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
      "aria-label": `${chart.title} over the last ${duration(over)}: ${said.join(", ")}` },
    made,
  );
}

/** Seconds between slots, as far as they tell. */
function slotLength(slots) {
  const gaps = slots.slice(1).map((slot, i) => slot.at - slots[i].at).filter((gap) => gap > 0.5);
  return gaps.length ? Math.min(...gaps) : 10;
}

/** Slots without tokens are missing: the line has a gap there. */
function unbroken(line, length) {
  const parts = [];
  for (const point of line) {
    const last = parts.at(-1);
    if (last && point[0] - last.at(-1)[0] < 1.5 * length) last.push(point);
    else parts.push([point]);
  }
  return parts;
}

/** A round figure at or above. */
function ceiling(value) {
  if (!(value > 0)) return 1;
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 8, 10].find((step) => step * size >= value * 0.999) * size;
}
