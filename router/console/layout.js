// Where everything of the drawing goes. Pure: nodes and links in, coordinates in pixels out.
//
// The horizontal axis is the model's layers: a node is a bar over those it holds. Where work changes
// nodes, the axis has a gap that the links cross. The router stands at both ends. Vertically, nodes
// are grouped by region and come in the order of their layers.

import { ROUTER } from "./model.js";

/** More rows than this are drawn densely. */
export const MANY = 12;

/** Rows of the drawing: a node each, or all of one kind with the same layers in one region. */
export function rowsOf(nodes, grouped, open) {
  const rows = new Map();
  for (const node of nodes) {
    const alike = [node.region, node.first, node.end, node.kind, node.next].join("\n");
    const together = grouped && node.first !== null && !open.has(alike);
    const key = together ? `group\n${alike}` : `node\n${node.name}`;
    const row = rows.get(key) ?? { key, alike, nodes: [], region: node.region };
    row.nodes.push(node);
    rows.set(key, row);
  }
  return [...rows.values()].map(summed).sort(inOrder);
}

function summed(row) {
  const [first] = row.nodes;
  const total = (what) => row.nodes.reduce((sum, node) => sum + node[what], 0);
  const flow = total("flow");
  const rate = total("rate");
  const order = ["bad", "warn", "busy", "good"];
  const worst = [...row.nodes].sort((a, b) => order.indexOf(a.look) - order.indexOf(b.look))[0];
  return {
    ...row,
    first: first.first,
    end: first.end,
    next: first.next,
    kind: first.kind,
    label: row.nodes.length > 1 ? `${row.nodes.length} × ${first.kind}` : first.name,
    flow,
    rate,
    use: rate > 0 ? flow / rate : null,
    caps: row.nodes.some((node) => node.caps),
    look: worst.look,
    told: worst.told,
    brief: worst.brief,
  };
}

function inOrder(a, b) {
  return (
    compare(a.region, b.region) ||
    (a.first ?? Infinity) - (b.first ?? Infinity) ||
    a.end - b.end ||
    compare(a.label, b.label)
  );
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Links between rows, those between the same rows as one. */
export function linksOf(rows, links) {
  const rowOf = new Map([[ROUTER, ROUTER]]);
  for (const row of rows) for (const node of row.nodes) rowOf.set(node.name, row.key);
  const found = new Map();
  for (const link of links) {
    const [from, to] = [rowOf.get(link.from), rowOf.get(link.to)];
    if (from === undefined || to === undefined || from === to) continue;
    const trouble = link.closed || link.downS > 0;
    if (link.flow <= 0 && !trouble) continue;
    const key = `${from}\n\n${to}`;
    const sum = found.get(key) ?? {
      key, from, to, flow: 0, capacity: 0, count: 0, caps: false, trouble: false, roundTripS: 0,
    };
    sum.flow += link.flow;
    sum.capacity = sum.capacity === null || link.capacity === null ? null : sum.capacity + link.capacity;
    sum.count += 1;
    sum.caps ||= link.caps;
    sum.trouble ||= trouble;
    sum.roundTripS = Math.max(sum.roundTripS, link.roundTripS);
    found.set(key, sum);
  }
  return [...found.values()].map((link) => ({
    ...link,
    use: link.capacity !== null && link.capacity > 0 ? link.flow / link.capacity : null,
  }));
}

/** Everything placed on a width. `total` tokens/s make the thickest line. */
export function layout(rows, links, numLayers, width, total) {
  const narrow = width < 640;
  const dense = rows.length > MANY;
  const size = {
    width,
    narrow,
    dense,
    left: narrow ? 0 : 176,
    right: narrow ? 0 : 148,
    rail: narrow ? 22 : 52,
    top: 46,
    bar: dense ? 13 : 24,
    row: narrow ? (dense ? 36 : 56) : dense ? 21 : 46,
    region: 30,
    thickest: dense ? 11 : 16,
  };
  const across = axis(rows, links, numLayers, size);
  const placed = down(rows, across, size);
  const byKey = new Map(placed.rows.map((row) => [row.key, row]));
  return {
    ...size,
    ...placed,
    links: lines(links, byKey, across, size, total),
    ticks: ticks(numLayers, across, size),
    xOf: across.from,
    untilOf: across.until,
    railIn: across.start,
    railOut: across.finish,
  };
}

function axis(rows, links, numLayers, size) {
  const ends = new Map(rows.map((row) => [row.key, row.end]));
  const crossed = [...new Set(links.filter((k) => k.from !== ROUTER && k.to !== ROUTER)
    .map((k) => ends.get(k.from)).filter((end) => end > 0 && end < numLayers))].sort((a, b) => a - b);
  const start = size.left + 1;
  const finish = size.width - size.right - 1;
  const inner = finish - start - 2 * size.rail;
  const gap = Math.min(size.narrow ? 34 : 64, (inner * 0.45) / Math.max(1, crossed.length));
  const layer = (inner - gap * crossed.length) / Math.max(1, numLayers);
  const before = (at) => crossed.filter((end) => end < at).length;
  return {
    start,
    finish,
    gap,
    layer,
    /** The right end of a bar that ends there. */
    until: (at) => start + size.rail + at * layer + before(at) * gap,
    /** The left end of a bar that begins there. */
    from: (at) => start + size.rail + at * layer + before(at) * gap + (crossed.includes(at) ? gap : 0),
  };
}

function down(rows, across, size) {
  const placed = [];
  const regions = [];
  const named = rows.some((row) => row.region !== "");
  let y = size.top;
  let region = null;
  for (const row of rows) {
    if (named && row.region !== region) {
      region = row.region;
      regions.push({ name: region, y, rows: rows.filter((other) => other.region === region) });
      y += size.region;
    }
    const middle = size.narrow ? y + size.row - size.bar / 2 - 6 : y + size.row / 2;
    const holds = row.first !== null;
    placed.push({
      ...row,
      y,
      middle,
      x: holds ? across.from(row.first) : null,
      until: holds ? across.until(row.end) : null,
    });
    y += size.row;
  }
  return { rows: placed, regions, height: y + 6 };
}

function lines(links, byKey, across, size, total) {
  const most = Math.max(total, ...links.map((link) => link.flow), 1e-9);
  const made = [];
  for (const link of links) {
    const a = byKey.get(link.from);
    const b = byKey.get(link.to);
    const source = a ?? null;
    const target = b ?? null;
    if ((source && source.x === null) || (target && target.x === null)) continue;
    const thick = Math.max(1.25, (link.flow / most) * size.thickest);
    const xa = source ? source.until : across.start;
    const at = source ? source.end : 0;
    const xb = target ? (source ? across.from(at) : target.x) : across.finish;
    const ya = source ? source.middle : target.middle;
    const yb = target ? target.middle : source.middle;
    made.push({ ...link, thick, xa, ya, xb, yb, source, target });
  }
  stack(made, "source", "ya", "yb");
  stack(made, "target", "yb", "ya");
  const ways = new Map();
  for (const line of made) {
    const way = `${line.from}\n\n${Math.sign(line.yb - line.ya)}`;
    ways.set(way, (ways.get(way) ?? 0) + 1);
    line.way = way;
  }
  for (const line of made) {
    if (!line.source) line.ya = line.yb;
    if (!line.target) line.yb = line.ya;
    const pull = Math.max(10, (line.xb - line.xa) * 0.5);
    line.path =
      `M${at(line.xa)} ${at(line.ya)}C${at(line.xa + pull)} ${at(line.ya)} ` +
      `${at(line.xb - pull)} ${at(line.yb)} ${at(line.xb)} ${at(line.yb)}`;
    Object.assign(line, words(line, pull, size, ways.get(line.way) > 1));
  }
  return made;
}

/** Where a line's figure stands: half a row from one end. Where several leave in the same direction,
 * from the end that they do not share. */
function words(line, pull, size, shared) {
  const rise = line.yb - line.ya;
  if (Math.abs(rise) < 2) {
    return { wordsX: (line.xa + line.xb) / 2, wordsY: line.ya - line.thick / 2 - 4 };
  }
  const half = Math.sign(rise) * Math.min(Math.abs(rise) / 2, size.row / 2);
  const y = shared ? line.yb - half : line.ya + half;
  // The curve's height rises all the way, so its place is found by halving.
  let [low, high] = [0, 1];
  for (let i = 0; i < 20; i += 1) {
    const t = (low + high) / 2;
    const height = line.ya + rise * t * t * (3 - 2 * t);
    if ((height - y) * Math.sign(rise) < 0) low = t;
    else high = t;
  }
  const [t, rest] = [low, 1 - low];
  const x =
    line.xa * rest ** 3 + 3 * (line.xa + pull) * rest ** 2 * t + 3 * (line.xb - pull) * rest * t ** 2 + line.xb * t ** 3;
  return { wordsX: x, wordsY: y + 4 };
}

/** Lines that meet at one end of a bar lie beside each other there, in the order of where they go. */
function stack(made, end, mine, other) {
  const meeting = new Map();
  for (const line of made) {
    if (!line[end]) continue;
    const place = `${line[end].key}\n\n${at(end === "source" ? line.xa : line.xb)}`;
    meeting.set(place, [...(meeting.get(place) ?? []), line]);
  }
  for (const group of meeting.values()) {
    group.sort((a, b) => a[other] - b[other]);
    let y = group[0][end].middle - group.reduce((sum, line) => sum + line.thick, 0) / 2;
    for (const line of group) {
      line[`${mine}Moved`] = y + line.thick / 2;
      y += line.thick;
    }
  }
  for (const line of made) if (line[`${mine}Moved`] !== undefined) line[mine] = line[`${mine}Moved`];
}

const at = (value) => Math.round(value * 10) / 10;

function ticks(numLayers, across, size) {
  const least = size.narrow ? 34 : 44;
  const step = [1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 40, 50, 100, 200, 500].find(
    (every) => every * across.layer >= least || every >= numLayers,
  );
  const made = [];
  for (let layer = 0; layer < numLayers; layer += step ?? numLayers) {
    made.push({ layer, x: across.from(layer) });
  }
  return made;
}
