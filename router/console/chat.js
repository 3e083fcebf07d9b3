// A chat with the model, to try it: through the same door as everybody's requests.

import { Refused, events } from "./api.js";
import { $, el, say } from "./dom.js";
import { duration, plural, rate } from "./format.js";

const SHOWN_EVERY_MS = 60;

export class Chat {
  constructor() {
    this.model = "";
    this.said = [];
    this.stop = null;
    $("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.stop) this.stop.abort();
      else this.send();
    });
    $("chat-input").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.stop) this.send();
    });
    $("chat-clear").addEventListener("click", () => this.clear());
  }

  clear() {
    this.stop?.abort();
    this.said = [];
    $("chat-log").replaceChildren();
    $("chat-log").hidden = $("chat-clear").hidden = true;
    say($("chat-status"), "");
    $("chat-input").focus();
  }

  add(role, text) {
    const body = el("div", { class: "said" }, text);
    const who = role === "user" ? "You" : this.model || "Model";
    $("chat-log").append(el("li", { "data-role": role }, el("p", { class: "who" }, who), body));
    $("chat-log").hidden = $("chat-clear").hidden = false;
    return body;
  }

  async send() {
    const text = $("chat-input").value.trim();
    if (!text) return;
    // Clear begins another conversation; what still comes belongs to this one.
    const said = this.said;
    $("chat-input").value = "";
    said.push({ role: "user", content: text });
    this.add("user", text);
    const body = this.add("assistant", "");
    const paper = new Paper(body);
    this.stop = new AbortController();
    say($("chat-go"), "Stop");
    say($("chat-status"), "Waiting for the first token …");
    const begun = performance.now();
    let first = null;
    let tokens = 0;
    let answer = "";
    try {
      const wanted = {
        model: this.model,
        messages: said,
        max_tokens: Math.max(1, Number($("chat-max").value) || 256),
        stream: true,
        stream_options: { include_usage: true },
      };
      for await (const event of events("chat/completions", wanted, this.stop.signal)) {
        if (event.error) throw new Refused(event.error.message ?? "It broke off.", 500);
        const piece = event.choices?.[0]?.delta?.content ?? "";
        if (piece) {
          if (first === null) say($("chat-status"), "Answering …");
          first ??= performance.now();
          tokens += 1;
          answer += piece;
          paper.write(piece);
        }
        tokens = event.usage?.completion_tokens ?? tokens;
      }
      say($("chat-status"), told(begun, first, tokens));
    } catch (fault) {
      const stopped = fault.name === "AbortError";
      say($("chat-status"), stopped ? `Stopped. ${told(begun, first, tokens)}` : fault.message);
      if (!stopped) body.classList.add("broken");
    } finally {
      paper.show();
      if (answer) said.push({ role: "assistant", content: answer });
      else said.pop();
      this.stop = null;
      say($("chat-go"), "Send");
    }
  }
}

/**
 * Where an answer is written. A text is laid out anew with each change, all of it: to do that for each
 * token of a long answer leaves the page no time for anybody's clicks, so it is done a few times a second.
 */
class Paper {
  constructor(body) {
    this.text = document.createTextNode("");
    this.fresh = "";
    this.timer = null;
    body.append(this.text);
  }

  write(piece) {
    this.fresh += piece;
    this.timer ??= setTimeout(() => this.show(), SHOWN_EVERY_MS);
  }

  show() {
    clearTimeout(this.timer);
    this.timer = null;
    if (!this.fresh) return;
    const log = $("chat-log");
    const low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    this.text.appendData(this.fresh);
    this.fresh = "";
    if (low) log.scrollTop = log.scrollHeight;
  }
}

function told(begun, first, tokens) {
  if (first === null) return "No text came.";
  const spent = (performance.now() - first) / 1000;
  const speed = tokens > 1 && spent > 0 ? `, then ${rate((tokens - 1) / spent)} tokens/s` : "";
  return `${plural(tokens, "token")}; first after ${duration((first - begun) / 1000)}${speed}.`;
}
