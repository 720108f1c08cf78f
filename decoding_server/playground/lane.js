// One lane: a conversation, how it is decoded, and what is seen of that.

import { CostView } from "./cost_view.js";
import { el, oncePerFrame, setText } from "./element.js";
import { endIsSeen, followEnd, showEnd } from "./follow.js";
import { RoundView } from "./round_view.js";
import { Run } from "./run.js";
import { Settings } from "./settings.js";
import { SnippetView } from "./snippet.js";
import { TokenView } from "./token_view.js";
import { TreeView } from "./tree_view.js";
import { counts, TurnView } from "./turn_view.js";

export class Lane {
  /** name: "A" or "B". hooks: saved() after anything worth keeping changed, point(lane, param) shows a field,
   * refused(error) hears of every error, floor() is where the screen ends for what scrolls. */
  constructor(name, catalogue, hooks) {
    this.name = name;
    this.hooks = hooks;
    this.turns = [];
    this.shown = []; // a TurnView for each turn
    this.run = null;
    this.settings = new Settings(name, catalogue, () => {
      this.title.textContent = this.settings.title;
      hooks.saved();
    });
    this.title = el("span", { class: "title" }, this.settings.title);
    this.transcript = el("ol", { class: "transcript", "aria-label": `Conversation ${name}` });
    this.status = el("p", { class: "status", role: "status" });
    this.alert = el("div", { class: "alert", role: "alert", hidden: true });
    this.snippet = new SnippetView();
    this.views = [new CostView(), new RoundView(), new TreeView(), new TokenView(), this.snippet];
    this.element = el(
      "section",
      { class: "lane", "aria-label": `Lane ${name}` },
      el("h2", {}, el("span", { class: "badge" }, name), this.title),
      this.transcript,
      this.alert,
      this.status,
      ...this.views.map((view) => view.element),
    );
    this.snippet.element.hidden = true;
    this.redraw = oncePerFrame(() => this.draw());
  }

  get running() {
    return this.run?.state === "running";
  }

  /** Asks: the conversation so far and `text`. Returns when the answer is there, or failed. */
  async ask(text, { model, traced }) {
    this.settings.clear();
    this.alert.hidden = true;
    let fields;
    try {
      fields = this.settings.read(traced);
    } catch (error) {
      this.fail(error);
      return;
    }
    const messages = [...this.history(), { role: "user", content: text }];
    const turn = { user: text, text: "", state: "running", note: "" };
    this.turns.push(turn);
    this.run = new Run({ model, messages, ...fields }, () => this.redraw());
    this.snippet.element.hidden = false;
    this.snippet.show(this.run.body);
    this.draw();
    await this.run.start();
    this.draw();
  }

  history() {
    return this.turns.filter(counts).flatMap((turn) => [
      { role: "user", content: turn.user },
      { role: "assistant", content: turn.text },
    ]);
  }

  stop() {
    this.run?.stop();
  }

  clear() {
    this.stop();
    this.turns = [];
    this.run = null;
    this.alert.hidden = true;
    this.status.textContent = "";
    for (const view of this.views) view.element.hidden = true;
    this.draw();
  }

  draw() {
    const followed = this.end !== null && endIsSeen(this.end, this.hooks.floor());
    const { run } = this;
    if (run) {
      const turn = this.turns[this.turns.length - 1];
      turn.text = run.text;
      turn.state = run.state;
      turn.note = noteOf(run);
      setText(this.status, statusOf(run));
      for (const view of this.views) if (view !== this.snippet) view.show(run);
      if (run.error && this.alert.hidden) {
        this.hooks.refused(run.error);
        this.fail(run.error);
      }
    }
    this.write();
    if (followed && this.end !== null) followEnd(this.end, this.hooks.floor());
    this.hooks.saved();
  }

  /** The turns, of which the last alone may change. */
  write() {
    if (this.turns.length < this.shown.length) {
      this.shown = [];
      this.transcript.replaceChildren();
    }
    this.shown.at(-1)?.show(this.turns[this.shown.length - 1]);
    for (const turn of this.turns.slice(this.shown.length)) {
      const view = new TurnView(turn);
      this.shown.push(view);
      this.transcript.append(...view.elements);
    }
  }

  /** Where the conversation ends, null before it began. */
  get end() {
    return this.alert.hidden ? (this.shown.at(-1)?.last ?? null) : this.alert;
  }

  /** Brings the end of the conversation into view, wherever the reader is. */
  reveal() {
    if (this.end !== null) showEnd(this.end, this.hooks.floor());
  }

  fail(error) {
    const help = el("p", {}, error.message);
    const button =
      error.param &&
      el("button", { type: "button", on: { click: () => this.hooks.point(this, error.param) } }, `Show the field ${error.param}`);
    this.alert.replaceChildren(el("p", { class: "strong" }, titleOf(error)), help, button || "");
    this.alert.hidden = false;
  }

  save() {
    return { turns: this.turns, settings: this.settings.save() };
  }

  /** What a reload left behind. An answer that was being written then has been cut off. */
  restore({ turns, settings }) {
    this.settings.restore(settings);
    this.title.textContent = this.settings.title;
    this.turns = turns.map((turn) =>
      turn.state === "running" ? { ...turn, state: "stopped", note: "Cut off by a reload of the page." } : turn,
    );
    if (this.turns.some((turn) => turn.note === "Cut off by a reload of the page.")) {
      this.status.textContent = "The page was reloaded while an answer was being written; the server has dropped it.";
    }
    this.draw();
  }
}

function noteOf(run) {
  if (run.state === "stopped") return "You stopped this answer.";
  if (run.state !== "done") return "";
  const parts = [];
  if (run.stopReason && String(run.stopReason).startsWith("budget:")) parts.push(`The budget ended it (${run.stopReason.slice(7)}).`);
  else if (run.finish === "length") parts.push("Cut off at its greatest length.");
  return [...parts, ...run.warnings].join(" ");
}

function statusOf(run) {
  if (run.state === "failed") return "";
  if (run.state === "running") return run.tree.size > 0 ? `Searching: ${run.tree.size} nodes` : "Writing…";
  const tokens = run.usage?.completion_tokens;
  const what = run.state === "stopped" ? "Stopped" : "Done";
  return tokens === undefined ? `${what}.` : `${what}: ${tokens} tokens in ${run.seconds.toFixed(1)} s.`;
}

function titleOf(error) {
  if (error.param && error.status === undefined) return "This can't be sent yet.";
  if (error.status === 400) return "The server can't do this as asked.";
  if (error.status === 401) return "The server wants a key.";
  if (error.status === 429) return "The server is busy; try again in a moment.";
  return "The request failed.";
}
