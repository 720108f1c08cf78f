// Asks for the API key where the server wants one. It stays in this tab's session.

import { setKey } from "./api.js";
import { el } from "./element.js";

/** Resolves once a key has been given. message: why it is asked for. */
export function askForKey(message) {
  return new Promise((resolve) => {
    const input = el("input", { id: "key", type: "password", autocomplete: "off", required: true });
    const form = el(
      "form",
      {},
      el("h2", { id: "key-title" }, "API key"),
      el("p", {}, message),
      el("label", { for: "key" }, "Key"),
      input,
      el("p", { class: "hint" }, "It is kept in this tab until you close it, and sent to this server only."),
      el("button", { type: "submit", class: "primary" }, "Use this key"),
    );
    const dialog = el("dialog", { "aria-labelledby": "key-title" }, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      setKey(input.value.trim());
      dialog.close();
      dialog.remove();
      resolve();
    });
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
  });
}
