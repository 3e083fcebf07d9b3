// Where one request's time went, hop by hop, as its nodes measured it.

import { Refused, get } from "./api.js";
import { $, el } from "./dom.js";
import { duration, plural } from "./format.js";
import { ROUTER } from "./model.js";

export class Trace {
  constructor() {
    $("trace-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.show($("trace-id").value.trim());
    });
    $("request-rows").addEventListener("click", (event) => {
      const button = event.target.closest("button[data-trace]");
      if (button) this.show(button.dataset.trace);
    });
  }

  async show(id) {
    if (!id) return;
    $("trace-id").value = id;
    const box = $("trace-answer");
    try {
      box.replaceChildren(...shown(await get(`helix/requests/${encodeURIComponent(id)}/trace`)));
    } catch (fault) {
      if (!(fault instanceof Refused)) throw fault;
      box.replaceChildren(el("p", { class: "fault" }, fault.message));
    }
    box.scrollIntoView({ block: "nearest" });
  }
}

function shown(trace) {
  const newest = Math.max(0, ...trace.hops.map((hop) => hop.attempt));
  const hops = trace.hops.filter((hop) => hop.attempt === newest);
  const wires = new Map(trace.wires.map((wire) => [wire.sender, wire]));
  const body = hops.map((hop) => hopRow(hop, wires.get(hop.node)));
  const into = wires.get(ROUTER);
  if (into) body.unshift(hopRow(null, into));
  return [
    el("p", {}, summary(trace)),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Times of each hop" },
      el("table", {},
        el("caption", { class: "hidden" }, `Times of each hop of request ${trace.id}`),
        el("thead", {},
          el("tr", {},
            el("th", { scope: "col", rowspan: 2 }, "Hop"),
            el("th", { scope: "colgroup", colspan: 3, class: "num" }, "Prompt, all of it"),
            el("th", { scope: "colgroup", colspan: 3, class: "num" }, "Each token"),
            el("th", { scope: "col", rowspan: 2, class: "num" }, "Wire onward")),
          el("tr", { class: "second" }, ["Queue", "Compute", "Sending", "Queue", "Compute", "Sending"].map(
            (name) => el("th", { scope: "col", class: "num" }, name)))),
        el("tbody", {}, body))),
    el("p", { class: "dim small" }, about(trace)),
  ];
}

function summary(trace) {
  const each = trace.decodes > 0 ? `, ${duration(trace.decode_s / trace.decodes)} each after the first` : "";
  const state = trace.outcome ? `ended (${trace.outcome})` : trace.state;
  const again = trace.attempts > 1 ? ` It is on its ${trace.attempts}. route; its times are of that one.` : "";
  return (
    `${trace.id}, ${state}: waited ${duration(trace.queue_s)}, first token after ${duration(trace.ttft_s)}; ` +
    `${plural(trace.prompt_tokens, "prompt token")}, ${plural(trace.output_tokens, "token")} of output${each}.${again}`
  );
}

function about(trace) {
  const missing = trace.missing.length ? ` Not told yet: ${trace.missing.join(", ")}.` : "";
  const basis = trace.wire_basis ? `Wire: ${trace.wire_basis}.` : "";
  return `${basis}${missing}`.trim();
}

function hopRow(hop, wire) {
  const parts = (phase, by) =>
    ["queue_s", "compute_s", "serialise_s"].map((part) => (by > 0 ? duration(phase[part] / by) : "–"));
  const name = hop ? [el("span", { class: "name" }, hop.node), el("span", { class: "sub" }, hop.layers.replace("-", "–"))] : "router";
  const cells = hop?.known
    ? [...parts(hop.prefill, hop.prefill.steps ? 1 : 0), ...parts(hop.decode, hop.decode.steps)]
    : Array(6).fill(hop ? "–" : "");
  return el("tr", {},
    el("th", { scope: "row" }, name),
    cells.map((text) => el("td", { class: "num" }, text)),
    el("td", { class: "num" }, onward(wire)));
}

function onward(wire) {
  if (!wire) return "–";
  const to = wire.receiver === ROUTER ? "router" : wire.receiver;
  const trip = wire.round_trip_s > 0 ? `half a round trip: ${duration(wire.round_trip_s / 2)}` : "not known";
  return `${wire.decode_s === null ? trip : duration(wire.decode_s)} to ${to}`;
}
