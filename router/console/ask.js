// The one dialog: a question to be confirmed, or one that is answered in a field.

import { $, say } from "./dom.js";

/**
 * Resolves to null when it is called off, else to what was typed (empty without a field).
 * `question`: title, text, yes (the button's words), and for a field `field` (its label) and `fault`.
 */
export function ask(question) {
  const dialog = $("ask");
  if (dialog.open) return Promise.resolve(null);
  say($("ask-title"), question.title);
  say($("ask-text"), question.text);
  say($("ask-yes"), question.yes);
  say($("ask-label"), question.field ?? "");
  say($("ask-fault"), question.fault ?? "");
  $("ask-fault").hidden = !question.fault;
  $("ask-field").hidden = !question.field;
  $("ask-input").value = "";
  $("ask-input").required = Boolean(question.field) && !question.mayBeEmpty;
  dialog.returnValue = "no";
  $("ask-no").onclick = () => dialog.close("no");
  dialog.showModal();
  (question.field ? $("ask-input") : $("ask-no")).focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const typed = $("ask-input").value;
        $("ask-input").value = "";
        resolve(dialog.returnValue === "yes" ? typed : null);
      },
      { once: true },
    );
  });
}
