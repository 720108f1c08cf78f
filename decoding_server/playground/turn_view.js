// One turn of a conversation: the question, and the answer as it grows. Written in place, so that what a reader has
// selected stays selected.

import { el, setText } from "./element.js";

/** Whether later requests repeat a turn: what was stopped stands as far as it came, what failed is to be asked again. */
export function counts(turn) {
  return turn.state !== "failed" && turn.text !== "";
}

const STATES = { running: "is being written", stopped: "stopped", failed: "failed" };

export class TurnView {
  constructor(turn) {
    this.fate = el("span", { class: "hint" });
    this.state = el("span", { class: "hint" });
    this.text = el("div", { class: "text" });
    this.note = el("p", { class: "hint" });
    this.answer = el("li", {}, el("span", { class: "who" }, "Model", this.state), this.text, this.note);
    const asker = el("span", { class: "who" }, "You", this.fate);
    const question = el("li", { class: "turn user" }, asker, el("div", { class: "text" }, turn.user));
    this.elements = [question, this.answer];
    this.show(turn);
  }

  show(turn) {
    const { text, state, note } = turn;
    setText(this.fate, state === "running" || counts(turn) ? "" : " — not part of the conversation");
    this.answer.className = `turn assistant ${state}`;
    this.answer.hidden = state === "failed" && text === "";
    setText(this.state, state in STATES ? ` — ${STATES[state]}` : "");
    setText(this.text, text);
    setText(this.note, note);
    this.note.hidden = note === "";
  }

  /** Where the turn ends on the page. */
  get last() {
    return this.answer.hidden ? this.elements[0] : this.answer;
  }
}
