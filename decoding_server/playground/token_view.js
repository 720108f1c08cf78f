// The answer token by token; for the chosen one, who else could have been drawn, and with what probability.

import { arrowKeys, el, oncePerFrame, percent, visible } from "./element.js";
import { penaltyNote } from "./penalty_note.js";

const SHOWN = 12;
const NOTHING = 1e-6;

export class TokenView {
  constructor() {
    this.chosen = null;
    this.drawn = 0;
    this.list = el("div", { class: "tokens", role: "group", "aria-label": "Tokens of the answer" });
    this.detail = el("div", { class: "detail", role: "status" });
    this.element = el(
      "section",
      { class: "panel", "aria-label": "Tokens", hidden: true },
      el("h3", {}, "Tokens"),
      el("p", { class: "hint" }, "The stronger its colour, the less likely it was. Choose one (arrow keys move)."),
      this.list,
      this.detail,
    );
    this.redraw = oncePerFrame(() => this.draw());
    arrowKeys(this.list, () => [...this.list.children], (chip) => this.choose(Number(chip.dataset.token)));
  }

  show(run) {
    if (this.run !== run) {
      this.list.replaceChildren();
      this.detail.replaceChildren();
      this.drawn = 0;
      this.chosen = null;
    }
    const ended = this.state === "running" && run.state !== "running";
    this.run = run;
    this.state = run.state;
    this.element.hidden = run.tokens.length === 0;
    if (this.drawn < run.tokens.length || ended) this.redraw();
  }

  draw() {
    const { tokens } = this.run;
    for (; this.drawn < tokens.length; this.drawn += 1) this.list.append(this.chip(tokens[this.drawn], this.drawn));
    // Not before the end: a screen reader would be told of every token.
    if (this.chosen === null && tokens.length > 0 && this.run.state !== "running") this.tell(tokens.length - 1);
  }

  chip(token, number) {
    const penalised = penalisedIn(token);
    const kinds = ["token"];
    if (penalised > 0) kinds.push("penalised");
    if (token.round >= 0) kinds.push("drafted");
    const chip = el(
      "button",
      {
        type: "button",
        class: kinds.join(" "),
        "data-token": number,
        tabindex: number === 0 ? 0 : -1,
        "aria-pressed": "false",
        "aria-label": `${visible(token.text)}, ${percent(token.final)}${penalised > 0 ? ", repetition penalised here" : ""}`,
        on: { click: () => this.choose(number) },
      },
      token.text.includes("\n") ? token.text.replaceAll("\n", "⏎\n") : token.text || "∅",
    );
    chip.style.setProperty("--surprise", `${Math.round(40 * (1 - token.raw))}%`);
    return chip;
  }

  choose(number) {
    this.chosen = number;
    for (const chip of this.list.children) {
      const here = Number(chip.dataset.token) === number;
      chip.setAttribute("aria-pressed", String(here));
      chip.tabIndex = here ? 0 : -1;
    }
    this.tell(number);
  }

  tell(number) {
    const token = this.run.tokens[number];
    const others = token.kept - 1;
    const kept = others === 0 ? "It was the only token left" : `${token.kept.toLocaleString("en")} tokens were left`;
    this.detail.replaceChildren(
      el(
        "p",
        {},
        el("span", { class: "strong" }, `Token ${number + 1}: “${visible(token.text)}”. `),
        `${kept}, with ${percent(token.kept_mass)} of the model's mass, renormalised to 100 %.`,
      ),
      mass(token),
      table(token),
      ...(token.stages ?? []).map(penaltyNote),
    );
  }
}

function penalisedIn(token) {
  return (token.stages ?? []).reduce((sum, stage) => sum + (stage.changed ?? 0), 0);
}

function mass(token) {
  const bar = el("div", { class: "mass", role: "img", "aria-label": `Kept mass ${percent(token.kept_mass)}` }, el("span"));
  bar.firstChild.style.setProperty("--part", `${100 * Math.min(1, token.kept_mass)}%`);
  return bar;
}

function table(token) {
  // Where few tokens are possible, the rest of the list is none.
  const possible = token.candidates.filter((one) => one.final > 0 || one.raw > NOTHING);
  const rows = possible.slice(0, SHOWN).map((one) =>
    el(
      "tr",
      { class: one.id === token.id ? "drawn" : one.final === 0 ? "out" : "" },
      el("th", { scope: "row" }, visible(one.text, 16), one.id === token.id ? el("span", { class: "unseen" }, " (drawn)") : null),
      el("td", { class: "bars" }, bar("raw", one.raw), bar("final", one.final)),
      el("td", {}, percent(one.raw)),
      el("td", {}, one.final === 0 ? "left out" : percent(one.final)),
    ),
  );
  const head = ["token", "", "model", "drawn from"].map((text) => el("th", { scope: "col" }, text || el("span", { class: "unseen" }, "bars")));
  return el("table", { class: "candidates" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
}

function bar(kind, value) {
  const one = el("span", { class: `bar ${kind}` });
  one.style.setProperty("--part", `${Math.max(100 * value, value > 0 ? 0.5 : 0)}%`);
  return one;
}
