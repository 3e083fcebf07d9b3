// The router's picture as this page uses it. Routers of other versions may leave fields out: then
// there is nothing to show, never a fault.

export const ROUTER = "@router";

/** From here on a node is said to be slower than it measured. */
const SLOW = 1.2;

const text = (value) => (typeof value === "string" ? value : "");
const list = (value) => (Array.isArray(value) ? value : []);
const number = (value, other = null) =>
  typeof value === "number" && Number.isFinite(value) ? value : other;

export function read(picture) {
  const nodes = list(picture.nodes).map(readNode);
  const router = picture.router ?? {};
  return {
    serving: picture.serving === true,
    reason: text(picture.reason),
    flow: number(picture.flow_tokens_per_s, 0),
    doing: text(picture.doing),
    verdict: text(picture.verdict),
    searches: number(picture.searches, 0),
    nodes,
    numLayers: number(router.num_layers) ?? Math.max(0, ...nodes.map((n) => n.end ?? 0)),
    links: list(picture.links).map(readLink),
    cap: text(picture.bottleneck?.text),
    events: list(picture.happenings).map(readEvent),
    router: readRouter(router),
  };
}

function readNode(node) {
  const [first, end] = ends(node);
  const flow = number(node.flow_tokens_per_s, 0);
  const rate = number(node.rate_tokens_per_s, 0);
  const total = number(node.kv_total_pages, 0);
  const made = {
    name: text(node.node),
    state: text(node.state),
    first,
    end,
    next: text(node.next_layers),
    device: text(node.device),
    kind: text(node.kind) || text(node.device),
    region: text(node.region),
    suspect: text(node.suspect),
    failure: text(node.failure),
    leaving: node.leaving === true,
    heardS: number(node.heard_s),
    kv: total > 0 ? number(node.kv_used_pages, 0) / total : null,
    crossing: number(node.crossing_requests),
    waiting: number(node.waiting_rows, 0),
    tokensPerS: number(node.tokens_per_s),
    flow,
    rate,
    use: rate > 0 ? flow / rate : null,
    busy: number(node.busy_share),
    stepS: number(node.step_s, 0),
    expectedS: number(node.expected_step_s, 0),
    slowdown: number(node.slowdown, 1),
    caps: node.caps === true,
  };
  [made.look, made.told, made.brief] = look(made);
  return made;
}

function ends(node) {
  const first = number(node.first_layer);
  const end = number(node.end_layer);
  if (first !== null && end !== null && end > first) return [first, end];
  return range(text(node.layers)) ?? [null, null];
}

/** `0-9` as [0, 10]; null for anything else. */
export function range(layers) {
  const match = /^(\d{1,4})-(\d{1,4})$/.exec(layers);
  return match ? [Number(match[1]), Number(match[2]) + 1] : null;
}

/** How a node is drawn, what is said of it, and the same in a word or two. */
function look(node) {
  if (node.failure) return ["bad", `failed: ${node.failure}`, "failed"];
  if (node.suspect) return ["warn", `suspect: ${node.suspect}`, "suspect"];
  if (node.leaving) return ["warn", "leaving", "leaving"];
  if (node.state === "loading") {
    const text = node.next ? `loading ${node.next}` : "loading";
    return ["busy", text, text];
  }
  if (node.state !== "ready") return ["busy", node.state || "unknown", node.state];
  if (node.next) return ["busy", `ready, loading ${node.next}`, `loading ${node.next}`];
  if (node.slowdown >= SLOW) {
    const text = `${node.slowdown.toFixed(1)}× slower`;
    return ["warn", `ready, ${text}`, text];
  }
  return ["good", "ready", ""];
}

function readLink(link) {
  const flow = number(link.flow_tokens_per_s, 0);
  const capacity = number(link.capacity_tokens_per_s);
  const made = {
    from: text(link.sender),
    to: text(link.receiver),
    flow,
    capacity,
    use: capacity !== null && capacity > 0 ? flow / capacity : null,
    bytesPerS: number(link.bytes_per_s, 0),
    carriesBytesPerS: number(link.probed_bytes_per_s, 0) || number(link.acknowledged_bytes_per_s, 0),
    probed: number(link.probed_bytes_per_s, 0) > 0,
    roundTripS: number(link.round_trip_s, 0),
    backlog: number(link.backlog_bytes, 0),
    blocked: number(link.blocked_share, 0),
    downS: number(link.down_s, 0),
    closed: link.closed === true,
    caps: link.caps === true,
  };
  return made;
}

function readEvent(event) {
  return {
    at: number(event.at_s),
    level: ["warning", "error"].includes(event.level) ? event.level : "info",
    kind: text(event.kind),
    node: text(event.node),
    text: text(event.text),
  };
}

function readRouter(router) {
  return {
    version: text(router.version),
    model: text(router.model),
    now: number(router.now_s),
    uptimeS: number(router.uptime_s),
    waiting: number(router.waiting),
    running: number(router.running),
    maxWaiting: number(router.max_waiting),
    admitted: number(router.admitted),
    refused: number(router.refused),
    refusedBy: router.refused_by ?? {},
    tokensPerS: number(router.output_tokens_per_s),
    overS: number(router.over_s, 300),
    ttft: percentiles(router.ttft),
    itl: percentiles(router.itl),
    history: list(router.history).map((slot) => ({
      at: number(slot.at_s, 0),
      tokens: number(slot.output_tokens, 0),
      ttft: percentiles(slot.ttft),
      itl: percentiles(slot.itl),
    })),
  };
}

function percentiles(value) {
  const some = number(value?.count, 0) > 0;
  return {
    count: some ? value.count : 0,
    p50: some ? number(value.p50_s) : null,
    p90: some ? number(value.p90_s) : null,
    p99: some ? number(value.p99_s) : null,
  };
}

export function readRequests(picture) {
  return {
    total: number(picture.total, 0),
    requests: list(picture.requests).map((request) => ({
      id: text(request.id),
      state: text(request.state),
      ageS: number(request.age_s),
      prompt: number(request.prompt_tokens),
      output: number(request.output_tokens),
      most: number(request.max_tokens),
      route: list(request.route).map((hop) => ({ node: text(hop.node), layers: text(hop.layers) })),
      at: text(request.at),
      sinceS: number(request.since_token_s, 0),
      reroutes: number(request.reroutes, 0),
      background: request.background === true,
    })),
  };
}

/** Whether a node is meant by what was typed into the filter: every word is found somewhere. */
export function matches(node, words) {
  const hay = `${node.name} ${node.region} ${node.kind} ${node.device} ${node.told}`.toLowerCase();
  return words.every((word) => hay.includes(word));
}
