// Talking with the router. The API key is kept for this tab only and travels in a header, never in
// an address.

const BASE = new URL("../v1/", document.baseURI);
const SLOT = "helix_mq.key";
const WAIT_MS = 8000;

let key = stored();

function stored() {
  try {
    return sessionStorage.getItem(SLOT) ?? "";
  } catch {
    return "";
  }
}

export function hasKey() {
  return key !== "";
}

export function setKey(text) {
  key = text.trim();
  try {
    if (key) sessionStorage.setItem(SLOT, key);
    else sessionStorage.removeItem(SLOT);
  } catch {
    // Then it is kept until the page is loaded anew.
  }
}

/** What the router refused, in its own words; `status` 0: it could not be reached. */
export class Refused extends Error {
  constructor(message, status, retryAfterS = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

function headers(more) {
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

async function reach(path, options) {
  try {
    return await fetch(new URL(path, BASE), {
      ...options,
      headers: headers(options.headers ?? {}),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (fault) {
    if (options.signal?.aborted && fault.name === "AbortError") throw fault;
    if (/header|ByteString|ISO-8859/i.test(fault.message)) {
      throw new Refused("The key holds characters that no key has.", 401);
    }
    throw new Refused("The router does not answer.", 0);
  }
}

async function refusal(answer) {
  let said = "";
  try {
    said = (await answer.json()).error?.message ?? "";
  } catch {
    // Something between us and the router answered.
  }
  const after = Number(answer.headers.get("retry-after"));
  const text = said || `The router answers with status ${answer.status}.`;
  return new Refused(text, answer.status, Number.isFinite(after) && after > 0 ? after : null);
}

async function json(path, options, waitMs = WAIT_MS) {
  const answer = await reach(path, { ...options, signal: AbortSignal.timeout(waitMs) });
  if (!answer.ok) throw await refusal(answer);
  try {
    return await answer.json();
  } catch {
    throw new Refused("The answer is not one of this router's.", answer.status);
  }
}

export function get(path) {
  return json(path, {});
}

export function post(path, body = {}, waitMs = WAIT_MS) {
  const text = JSON.stringify(body);
  return json(path, { method: "POST", body: text, headers: { "content-type": "application/json" } }, waitMs);
}

/** The data of each server-sent event of a POST, decoded. */
export async function* events(path, body, signal) {
  const answer = await reach(path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json" },
    signal,
  });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part
        .split(/\r?\n/)
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart())
        .join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}
