// One turn of a conversation: the question, and the answer as it grows. Written in place, so that what a reader has
// selected stays selected.

import { el, setText } from "./element.js";

const STATES = { running: "is being written", stopped: "stopped", failed: "failed" };

export class TurnView {
  constructor(turn) {
    this.state = el("span", { class: "hint" });
    this.text = el("div", { class: "text" });
    this.note = el("p", { class: "hint" });
    this.answer = el("li", {}, el("span", { class: "who" }, "Model", this.state), this.text, this.note);
    const question = el("li", { class: "turn user" }, el("span", { class: "who" }, "You"), el("div", { class: "text" }, turn.user));
    this.elements = [question, this.answer];
    this.show(turn);
  }

  show({ text, state, note }) {
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
