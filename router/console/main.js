// Asks the router each second what there is, and has everything shown. Nothing is asked for while the
// page is hidden or paused.

import { Refused, get, hasKey, post, setKey } from "./api.js";
import { ask } from "./ask.js";
import { Charts } from "./charts.js";
import { Chat } from "./chat.js";
import { $, attribute, el, say } from "./dom.js";
import { Drawing } from "./drawing.js";
import { count, duration, plural, rate, time } from "./format.js";
import { MANY } from "./layout.js";
import { matches, read, readRequests } from "./model.js";
import { showEvents, showLinks, showNodes, showRequests } from "./tables.js";
import { Trace } from "./trace.js";
import { WhatIf } from "./whatif.js";

const EVERY_MS = 1000;
const SLOWEST_MS = 15_000;
const SHOWN_REQUESTS = 20;

const drawing = new Drawing($("drawing"));
const charts = new Charts($("charts"));
const whatIf = new WhatIf();
const chat = new Chat();
new Trace();

let state = null;
let requests = readRequests({});
let paused = false;
let timer = null;
let asking = false;
let failures = 0;
let lostSince = null;
let allRequests = false;
let announced = null;
let groupChosen = false;
let withheld = "";

// -- asking --------------------------------------------------------------------

async function poll() {
  clearTimeout(timer);
  if (asking || paused || document.hidden) return;
  asking = true;
  try {
    const [cluster, live] = await Promise.all([get("helix/cluster"), optional("helix/requests")]);
    state = read(cluster);
    requests = readRequests(live);
    failures = 0;
    lostSince = null;
    trouble("");
    show();
  } catch (fault) {
    await failed(fault);
  } finally {
    asking = false;
    const wait = failures ? Math.min(EVERY_MS * 2 ** failures, SLOWEST_MS) : EVERY_MS;
    timer = setTimeout(poll, wait);
  }
}

/** Others' requests are shown to operators' keys only, and older routers have no such page. */
async function optional(path) {
  try {
    const answer = await get(path);
    withheld = "";
    return answer;
  } catch (fault) {
    if (!(fault instanceof Refused) || ![403, 404].includes(fault.status)) throw fault;
    withheld = fault.message;
    return {};
  }
}

async function failed(fault) {
  if (!(fault instanceof Refused)) {
    console.error(fault);
    trouble(`This page has a fault: ${fault.message}`);
    failures += 1;
    return;
  }
  if (fault.status === 401) {
    pill("waiting", "Key needed");
    trouble("");
    if (await askForKey(hasKey() ? fault.message : "")) return;
    trouble("Without an API key nothing can be shown here. The button Key asks for it again.");
    pause(true);
    return;
  }
  failures += 1;
  lostSince ??= Date.now() / 1000;
  const old = state ? ` What is shown is of ${time(lostSince)}.` : "";
  trouble(`${fault.message}${old} Trying again.`);
  pill("bad", "No answer");
}

async function askForKey(fault) {
  const key = await ask({
    title: "API key",
    text: "This router's pages need a key. It is kept for this browser tab only, and goes when the tab is closed.",
    field: "Key",
    yes: "Use it",
    fault,
  });
  if (key === null) return false;
  setKey(key);
  return true;
}

function trouble(text) {
  say($("trouble"), text);
  $("trouble").hidden = !text;
}

function pill(kind, text) {
  attribute($("state"), "data-state", kind);
  say($("state"), text);
}

function pause(on) {
  paused = on;
  attribute($("pause"), "aria-pressed", on);
  say($("pause"), on ? "Go on" : "Pause");
  if (!on) poll();
}

// -- showing -------------------------------------------------------------------

function show() {
  const { router } = state;
  pill(state.serving ? "good" : "bad", state.serving ? "Serving" : "Not serving");
  say($("model"), router.model);
  chat.model = router.model;
  document.title = `${state.serving ? "" : "✕ "}${router.model || "helix_mq"}`;
  showFigures();
  showCap();
  showDoing();
  showFiltered();
  charts.draw(router);
  showRequestTable();
  showEventList();
  whatIf.offer(state.nodes);
  const parts = [
    router.version && `helix_mq ${router.version}`,
    router.uptimeS !== null && `up for ${duration(router.uptimeS)}`,
    router.admitted !== null && `${plural(router.admitted, "request")} admitted`,
  ];
  say($("about"), parts.filter(Boolean).join(" · "));
}

function showFigures() {
  const { router, nodes } = state;
  const ready = nodes.filter((node) => node.state === "ready").length;
  const slow = (one) => (one.count ? `median; 99th ${duration(one.p99)}` : "median");
  const queue = router.maxWaiting ? `of ${count(router.maxWaiting)}` : "";
  const figures = [
    ["Max flow", rate(state.flow), "tokens/s"],
    ["Output now", rate(router.tokensPerS), "tokens/s"],
    ["Running", count(router.running), "requests"],
    ["Waiting", count(router.waiting), queue],
    ["First token", duration(router.ttft.p50), slow(router.ttft)],
    ["Between tokens", duration(router.itl.p50), slow(router.itl)],
    ["Nodes ready", count(ready), `of ${nodes.length}`],
    ["Refused", count(router.refused), refusals(router)],
  ];
  const box = $("figures");
  if (!box.children.length) {
    box.append(...figures.map(([name]) => el("div", {}, el("dt", {}, name), el("dd", {}, el("strong"), " ", el("span")))));
  }
  figures.forEach(([, value, unit], at) => {
    const [strong, span] = box.children[at].lastElementChild.children;
    say(strong, value);
    say(span, unit);
  });
}

function refusals(router) {
  const [code, times] = Object.entries(router.refusedBy).sort((a, b) => b[1] - a[1])[0] ?? ["", 0];
  return times ? `most: ${code.replaceAll("_", " ")}` : "since the start";
}

function showCap() {
  const cap = state.serving ? state.cap : state.reason;
  const text = cap ? `${cap[0].toUpperCase()}${cap.slice(1)}.` : "";
  say($("cap"), text);
  $("cap").hidden = !text;
  attribute($("cap"), "data-bad", !state.serving);
}

function showDoing() {
  const parts = [];
  if (state.doing) parts.push(`${state.doing[0].toUpperCase()}${state.doing.slice(1)}.`);
  if (state.verdict) parts.push(`Last search: ${state.verdict}.`);
  say($("doing"), parts.join(" "));
  $("doing").hidden = !parts.length;
}

function showFiltered() {
  if (!groupChosen) $("group").checked = state.nodes.length > MANY;
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const nodes = state.nodes.filter((node) => matches(node, words));
  const none = state.nodes.length
    ? "No node matches the filter."
    : "No node is here. Nodes connect to the router's control endpoint; helix-mq doctor says why one does not.";
  say($("flow-empty"), nodes.length ? "" : none);
  $("flow-empty").hidden = nodes.length > 0;
  $("drawing").hidden = nodes.length === 0;
  if (nodes.length) drawing.draw(state, nodes, $("group").checked);
  showNodes($("node-rows"), nodes, state.numLayers, drain);
  say($("nodes-count"), words.length ? `${nodes.length} of ${state.nodes.length}` : plural(nodes.length, "node"));
  const shown = new Set(nodes.map((node) => node.name));
  const links = state.links.filter((link) => !words.length || shown.has(link.from) || shown.has(link.to));
  say($("links-count"), links.length ? `(${links.length})` : "");
  if ($("links").open) showLinks($("link-rows"), links);
}

function showRequestTable() {
  const many = requests.requests.length;
  const shown = allRequests ? requests.requests : requests.requests.slice(0, SHOWN_REQUESTS);
  say($("requests-empty"), withheld || "No request is running or waiting.");
  $("requests-empty").hidden = many > 0;
  $("requests-table").hidden = many === 0;
  say($("requests-count"), many ? plural(requests.total, "request") : "");
  showRequests($("request-rows"), shown, state);
  $("requests-more").hidden = many <= SHOWN_REQUESTS;
  const beyond = requests.total > many ? ` of ${count(requests.total)}` : "";
  say($("requests-more"), allRequests ? `Show the oldest ${SHOWN_REQUESTS} only` : `Show ${count(many)}${beyond}`);
}

function showEventList() {
  const only = $("only-trouble").checked;
  const times = new Map();
  const keyed = state.events.map((event) => {
    const base = `${event.at}\n${event.kind}\n${event.node}\n${event.text}`;
    const nth = times.get(base) ?? 0;
    times.set(base, nth + 1);
    return { ...event, key: `${base}\n${nth}` };
  });
  announce(keyed);
  const shown = keyed.filter((event) => !only || event.level !== "info").reverse();
  showEvents($("event-rows"), shown);
  $("event-rows").hidden = shown.length === 0;
  $("events-empty").hidden = shown.length > 0;
}

/** New events are read out; those from before the page was opened are not. */
function announce(events) {
  const keys = new Set(events.map((event) => event.key));
  if (announced) {
    const fresh = events.filter((event) => !announced.has(event.key)).slice(-3);
    if (fresh.length) say($("live"), fresh.map((event) => `${event.node} ${event.text}`.trim()).join(". "));
  }
  announced = keys;
}

// -- doing ---------------------------------------------------------------------

async function operate(what, path) {
  try {
    await post(path);
    say($("live"), what);
    note(what);
  } catch (fault) {
    if (!(fault instanceof Refused)) throw fault;
    if (fault.status === 401 && (await askForKey(fault.message))) return operate(what, path);
    note(fault.message, true);
  }
  return poll();
}

/** What an order came to, until something else is to be said. */
function note(text, bad = false) {
  const line = el("p", { class: bad ? "notice bad" : "notice", role: bad ? "alert" : "status" }, text);
  const close = el("button", { type: "button", class: "quiet", "aria-label": "Close this note" }, "✕");
  close.addEventListener("click", () => line.remove());
  line.append(close);
  document.querySelector(".answer")?.remove();
  line.classList.add("answer");
  $("doing").before(line);
}

async function drain(name) {
  const alone = state.nodes.find((node) => node.name === name);
  const go = await ask({
    title: `Drain ${name}?`,
    text:
      `New requests avoid ${name} from now on; it leaves when those that run on it have ended` +
      `${alone?.caps ? "; it is part of what caps the flow" : ""}. Where it alone holds some layers, others ` +
      "are given them first; if none can take them, it stays and the events say why.",
    yes: `Drain ${name}`,
  });
  if (go !== null) await operate(`${name} is told to leave.`, `helix/nodes/${encodeURIComponent(name)}/drain`);
}

async function replan() {
  const go = await ask({
    title: "Look for a better placement?",
    text:
      "The planner searches with what nodes and links have measured. If it finds a placement that is worth " +
      "the move, layers are loaded beside those in use and then shifted: no request fails, memory and some " +
      "speed are taken meanwhile. If not, everything stays. The answer will stand here.",
    yes: "Re-plan",
  });
  if (go !== null) await operate("Asked for a better placement; the answer follows below.", "helix/replan");
}

// -- controls ------------------------------------------------------------------

const THEMES = [
  ["", "Auto", "Auto: colours as the system has them"],
  ["light", "Light", "Light colours"],
  ["dark", "Dark", "Dark colours"],
];

function showTheme() {
  const now = document.documentElement.dataset.theme ?? "";
  const [, name, words] = THEMES.find(([theme]) => theme === now) ?? THEMES[0];
  say($("theme"), name);
  attribute($("theme"), "aria-label", words);
}

function nextTheme() {
  const now = document.documentElement.dataset.theme ?? "";
  const at = THEMES.findIndex(([theme]) => theme === now);
  const [next] = THEMES[(at + 1) % THEMES.length];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  try {
    localStorage.setItem("helix_mq.theme", next);
  } catch {
    // Then it is forgotten with the page.
  }
  showTheme();
}

async function changeKey() {
  const key = await ask({
    title: "API key",
    text: `It is kept for this browser tab only.${hasKey() ? " Leave it empty to forget the present one." : ""}`,
    field: "Key",
    mayBeEmpty: hasKey(),
    yes: "Use it",
  });
  if (key === null) return;
  setKey(key);
  pause(false);
}

$("pause").addEventListener("click", () => pause(!paused));
$("key").addEventListener("click", changeKey);
$("theme").addEventListener("click", nextTheme);
$("replan").addEventListener("click", replan);
$("filter").addEventListener("input", () => state && showFiltered());
$("group").addEventListener("change", () => {
  groupChosen = true;
  if (state) showFiltered();
});
$("links").addEventListener("toggle", () => state && showFiltered());
$("only-trouble").addEventListener("change", () => state && showEventList());
$("requests-more").addEventListener("click", () => {
  allRequests = !allRequests;
  showRequestTable();
});
document.addEventListener("visibilitychange", () => document.hidden || poll());
showTheme();
poll();
