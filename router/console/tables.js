// The tables of nodes, links and requests, and the list of events.

import { attribute, el, say, sync } from "./dom.js";
import { bandwidth, count, date, duration, layers, percent, rate, time } from "./format.js";
import { ROUTER } from "./model.js";

function row(columns) {
  return el("tr", {}, columns.map(([tag, attributes]) => el(tag, attributes)));
}

const NUM = ["td", { class: "num" }];
const CELL = ["td", {}];

// -- nodes ---------------------------------------------------------------------

const NODE = [["th", { scope: "row" }], CELL, CELL, NUM, NUM, NUM, NUM, NUM, NUM, NUM, ["td", { class: "act" }]];

export function showNodes(body, nodes, numLayers, drain) {
  sync(body, nodes, (node) => node.name, (node) => newNode(node, drain), (tr, node) => fillNode(tr, node, numLayers));
}

function newNode(node, drain) {
  const tr = row(NODE);
  const [name, state, held, flow, , , , , , , act] = tr.cells;
  name.append(el("span", { class: "name" }), el("span", { class: "sub" }));
  state.append(el("span", { class: "state" }));
  held.append(el("span", { class: "held" }), el("span", { class: "strip", "aria-hidden": "true" }, el("span")));
  flow.append(el("span"), el("span", { class: "sub" }));
  const button = el("button", { type: "button", class: "quiet" }, "Drain");
  button.setAttribute("aria-label", `Drain ${node.name}`);
  button.addEventListener("click", () => drain(node.name));
  act.append(button);
  return tr;
}

function fillNode(tr, node, numLayers) {
  const [name, state, held, flow, now, step, busy, kv, requests, heard, act] = tr.cells;
  say(name.children[0], node.name);
  say(name.children[1], [node.kind, node.region].filter(Boolean).join(" · "));
  attribute(name, "title", node.device);
  say(state.children[0], node.told);
  attribute(state.children[0], "data-look", node.look);
  const holds = node.first !== null;
  say(held.children[0], holds ? layers(node.first, node.end) : "–");
  held.children[1].hidden = !holds || !numLayers;
  if (holds && numLayers) {
    const mark = held.children[1].firstElementChild;
    mark.style.marginInlineStart = `${(100 * node.first) / numLayers}%`;
    mark.style.inlineSize = `${(100 * (node.end - node.first)) / numLayers}%`;
  }
  say(flow.children[0], node.rate > 0 ? `${rate(node.flow)} of ${rate(node.rate)}` : rate(node.flow));
  say(flow.children[1], node.caps ? "caps the flow" : node.use === null ? "" : percent(node.use));
  attribute(flow, "data-high", node.caps);
  say(now, rate(node.tokensPerS));
  say(step, node.stepS > 0 ? duration(node.stepS) : "–");
  const slow = node.expectedS > 0 && node.stepS > 0 ? `; measured alone: ${duration(node.expectedS)}` : "";
  attribute(step, "title", slow ? `mean of the last seconds${slow}` : null);
  say(busy, percent(node.busy));
  say(kv, percent(node.kv));
  say(requests, node.waiting > 0 ? `${count(node.crossing)} (${node.waiting} rows wait)` : count(node.crossing));
  say(heard, node.heardS === null ? "–" : `${duration(node.heardS)} ago`);
  act.firstElementChild.disabled = node.leaving;
}

// -- links ---------------------------------------------------------------------

const LINK = [["th", { scope: "row" }], CELL, NUM, NUM, NUM, NUM, NUM, NUM, CELL];
const end = (name) => (name === ROUTER ? "router" : name);

export function showLinks(body, links) {
  sync(body, links, (link) => `${link.from}\n${link.to}`, () => row(LINK), fillLink);
}

function fillLink(tr, link) {
  const [from, to, flow, capacity, use, now, carries, trip, state] = tr.cells;
  say(from, end(link.from));
  say(to, end(link.to));
  say(flow, rate(link.flow));
  say(capacity, link.capacity === null ? "not measured" : rate(link.capacity));
  say(use, percent(link.use));
  say(now, link.bytesPerS > 0 ? bandwidth(link.bytesPerS) : "0");
  say(carries, link.carriesBytesPerS > 0 ? `${link.probed ? "" : "≥ "}${bandwidth(link.carriesBytesPerS)}` : "–");
  say(trip, link.roundTripS > 0 ? duration(link.roundTripS) : "–");
  const told = [];
  if (link.downS > 0) told.push(`down for ${duration(link.downS)}`);
  if (link.closed) told.push("closed to requests");
  if (link.caps) told.push("caps the flow");
  if (link.blocked >= 0.05) told.push(`blocked ${percent(link.blocked)} of the time`);
  if (link.backlog > 0) told.push(`${count(Math.ceil(link.backlog / 1024))} KiB wait`);
  say(state, told.join(", ") || "open");
}

// -- requests ------------------------------------------------------------------

const REQUEST = [["th", { scope: "row" }], CELL, NUM, NUM, NUM, ["td", { class: "route" }], NUM];

export function showRequests(body, requests, state) {
  const nodes = new Map(state.nodes.map((node) => [node.name, node]));
  const trips = new Map(state.links.map((link) => [`${link.from}\n${link.to}`, link.roundTripS]));
  sync(body, requests, (request) => request.id, newRequest, (tr, request) => {
    const [, told, age, prompt, output, route, since] = tr.cells;
    const extra = [request.background ? "background" : "", request.reroutes ? `${request.reroutes}× re-routed` : ""];
    say(told, [request.state, ...extra].filter(Boolean).join(", "));
    say(age, duration(request.ageS));
    say(prompt, count(request.prompt));
    say(output, `${count(request.output)} of ${count(request.most)}`);
    say(since, request.sinceS > 0 ? duration(request.sinceS) : "–");
    sync(route, steps(request, nodes, trips), (step) => step.key, newStep, fillStep);
  });
}

function newRequest(request) {
  const tr = row(REQUEST);
  const button = el("button", { type: "button", class: "quiet mono", "data-trace": request.id }, request.id);
  button.setAttribute("aria-label", `Trace ${request.id}`);
  tr.cells[0].append(button);
  return tr;
}

/** Hops and what lies between them, with the times they take now: a node's mean step, and half of
 * the link's round trip. */
function steps(request, nodes, trips) {
  const made = [];
  request.route.forEach((hop, at) => {
    if (at > 0) {
      const trip = trips.get(`${request.route[at - 1].node}\n${hop.node}`) ?? 0;
      made.push({ key: `wire ${at}`, wire: true, text: trip > 0 ? duration(trip / 2) : "" });
    }
    const step = nodes.get(hop.node)?.stepS ?? 0;
    made.push({
      key: `hop ${at} ${hop.node}`,
      name: hop.node,
      layers: hop.layers,
      text: step > 0 ? duration(step) : "",
      here: request.at === hop.node,
    });
  });
  return made;
}

function newStep(step) {
  if (step.wire) {
    return el("span", { class: "wire" }, el("span", { "aria-hidden": "true" }, "→"), el("span", { class: "sub" }));
  }
  return el("span", { class: "hop" }, el("span", { class: "name" }), " ", el("span", { class: "sub" }));
}

function fillStep(node, step) {
  if (step.wire) {
    say(node.lastElementChild, step.text);
    return;
  }
  say(node.firstElementChild, step.name);
  say(node.lastElementChild, [step.layers.replace("-", "–"), step.text].filter(Boolean).join(" · "));
  attribute(node, "data-here", step.here);
}

// -- events --------------------------------------------------------------------

export function showEvents(list, events) {
  sync(list, events, (event) => event.key, newEvent, () => {});
}

function newEvent(event) {
  const when = el("time", { title: date(event.at) }, time(event.at));
  if (event.at !== null) when.setAttribute("datetime", new Date(event.at * 1000).toISOString());
  const item = el("li", { "data-level": event.level }, when, el("span", { class: "text" }));
  const text = item.lastElementChild;
  if (event.level !== "info") text.append(el("span", { class: "level" }, `${event.level} `));
  if (event.node) text.append(el("strong", {}, event.node), " ");
  text.append(event.text);
  return item;
}
