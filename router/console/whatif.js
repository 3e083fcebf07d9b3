// What one more GPU would bring: asks the router, which works it out with the planner.

import { Refused, get, post } from "./api.js";
import { $, el } from "./dom.js";
import { layers, percent, plural, rate } from "./format.js";
import { range } from "./model.js";

const WAIT_MS = 60_000;

export class WhatIf {
  constructor() {
    this.known = "";
    $("whatif-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
  }

  /** Regions come and go with nodes; the choice made here stays while it can. */
  async offer(nodes) {
    const regions = [...new Set(nodes.map((node) => node.region))].sort();
    const sign = JSON.stringify(regions);
    if (sign === this.known || !nodes.length) return;
    this.known = sign;
    if (!$("whatif-gpu").options.length) {
      try {
        const { gpus } = await get("helix/whatif");
        choose($("whatif-gpu"), gpus.filter((gpu) => typeof gpu === "string"), (gpu) => gpu);
      } catch {
        this.known = "";
        return;
      }
    }
    choose($("whatif-region"), regions, (region) => region || "(no region)");
  }

  async ask() {
    const gpu = $("whatif-gpu").value;
    const region = $("whatif-region").value;
    if (!gpu) return;
    const button = $("whatif-ask");
    button.disabled = true;
    $("whatif-answer").replaceChildren(el("p", { class: "dim" }, "Working it out: up to ten seconds …"));
    try {
      const answer = await post("helix/whatif", { gpu, region }, WAIT_MS);
      $("whatif-answer").replaceChildren(...shown(answer));
    } catch (fault) {
      if (!(fault instanceof Refused)) throw fault;
      $("whatif-answer").replaceChildren(el("p", { class: "fault" }, fault.message));
    } finally {
      button.disabled = false;
    }
  }
}

function choose(select, values, show) {
  const before = select.value;
  select.replaceChildren(...values.map((value) => el("option", { value }, show(value))));
  if (values.includes(before)) select.value = before;
}

function gained(times) {
  if (times >= 10) return `${rate(times)} times`;
  return `${times >= 1 ? "+" : "−"}${percent(Math.abs(times - 1))}`;
}

function shown(answer) {
  const now = answer.now_tokens_per_s;
  const most = Math.max(now, answer.added_tokens_per_s, answer.replanned_tokens_per_s, 1e-9);
  const held = range(answer.layers ?? "");
  const place = held ? `beside the others, on layers ${layers(...held)}` : "beside the others: helps nowhere";
  const lines = [
    ["as it is", now],
    [place, answer.added_tokens_per_s],
    [`all planned anew, ${plural(answer.moved, "node")} on other layers`, answer.replanned_tokens_per_s],
  ];
  const bars = lines.map(([what, value], at) => {
    const bar = el("span", { class: "meter", "aria-hidden": "true" }, el("span"));
    bar.firstElementChild.style.inlineSize = `${(100 * value) / most}%`;
    const gain = at && now > 0 ? gained(value / now) : "";
    return el("div", {}, el("dt", {}, what), el("dd", {}, bar, el("strong", {}, rate(value)), ` ${gain}`));
  });
  const how = `An estimate of the max flow in tokens/s, by the planner. Speed of the ${answer.gpu}: ${answer.basis}.`;
  return [el("p", {}, answer.text), el("dl", { class: "bars" }, bars), el("p", { class: "dim small" }, how)];
}
