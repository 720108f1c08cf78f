// Rounds of speculation: the drafted tree, and which of its nodes the model accepted.

import { el, oncePerFrame, percent, setText, svg, visible } from "./element.js";
import { layout } from "./tree_layout.js";

const COLUMN = 104;
const ROW = 30;
const BOX = { width: 88, height: 24 };
const MARGIN = 8;

export class RoundView {
  constructor() {
    this.at = null; // null follows the newest round
    this.position = el("output", { class: "strong" });
    this.slider = el("input", { type: "range", min: 1, max: 1, value: 1, step: 1, "aria-label": "Round" });
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value) - 1));
    const step = (by, text) => el("button", { type: "button", on: { click: () => this.go(this.current + by) } }, text);
    this.bars = el("div", { class: "sparks", "aria-hidden": "true" });
    this.canvas = el("div", { class: "canvas", tabindex: 0, role: "region", "aria-label": "Draft tree of the round" });
    this.said = el("p", { role: "status" });
    this.totals = el("p", { class: "hint" });
    this.element = el(
      "section",
      { class: "panel rounds", "aria-label": "Rounds of speculation", hidden: true },
      el("h3", {}, "Draft trees"),
      this.totals,
      this.bars,
      el("div", { class: "row" }, step(-1, "Previous"), this.slider, step(1, "Next"), this.position),
      this.canvas,
      this.said,
    );
    this.redraw = oncePerFrame(() => this.draw());
  }

  get current() {
    return this.at ?? this.run.rounds.length - 1;
  }

  show(run) {
    if (this.run !== run) this.at = null;
    const same = this.run === run && this.count === run.rounds.length;
    this.run = run;
    this.count = run.rounds.length;
    this.element.hidden = this.count === 0;
    if (!same && this.count > 0) this.redraw();
  }

  go(number) {
    this.at = Math.max(0, Math.min(number, this.run.rounds.length - 1));
    this.draw();
  }

  draw() {
    const { rounds } = this.run;
    const round = rounds[this.current];
    this.slider.max = String(rounds.length);
    this.slider.value = String(this.current + 1);
    this.position.textContent = `Round ${this.current + 1} of ${rounds.length}`;
    const drafted = rounds.reduce((sum, one) => sum + one.nodes.length - 1, 0);
    const accepted = rounds.reduce((sum, one) => sum + one.accepted, 0);
    this.totals.textContent = `${drafted} tokens drafted, ${accepted} accepted: ${(1 + accepted / rounds.length).toFixed(2)} tokens a round`;
    this.sparks();
    if (this.pictured !== round) this.canvas.replaceChildren(picture(round));
    this.pictured = round;
    setText(this.said, sentence(round));
  }

  sparks() {
    const { rounds } = this.run;
    const first = Math.max(0, rounds.length - 120);
    const most = Math.max(1, ...rounds.map((one) => one.accepted));
    this.bars.replaceChildren(
      ...rounds.slice(first).map((one, index) => {
        const bar = el("span", { class: first + index === this.current ? "spark here" : "spark", title: `${one.accepted} accepted` });
        bar.style.setProperty("--height", `${Math.round((100 * (one.accepted + 0.15)) / (most + 0.15))}%`);
        bar.addEventListener("click", () => this.go(first + index));
        return bar;
      }),
    );
  }
}

function picture(round) {
  const children = new Map();
  round.nodes.forEach((node, id) => {
    if (node.parent === null) return;
    if (!children.has(node.parent)) children.set(node.parent, []);
    children.get(node.parent).push(id);
  });
  // Lying: the layout's rows are columns here.
  const { places, columns, rows } = layout(children);
  const at = (id) => ({ x: MARGIN + places.get(id).row * COLUMN, y: MARGIN + places.get(id).column * ROW });
  const width = 2 * MARGIN + (rows - 1) * COLUMN + BOX.width;
  const height = 2 * MARGIN + (columns - 1) * ROW + BOX.height;
  const edges = [];
  const boxes = [];
  round.nodes.forEach((node, id) => {
    const here = at(id);
    if (node.parent !== null) edges.push(edge(at(node.parent), here, node.accepted));
    boxes.push(box(node, id, here));
  });
  const label = `${round.nodes.length - 1} drafted tokens, ${round.accepted} accepted`;
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label }, ...edges, ...boxes);
}

function edge(from, to, accepted) {
  const start = from.x + BOX.width;
  const middle = (start + to.x) / 2;
  const [y1, y2] = [from.y + BOX.height / 2, to.y + BOX.height / 2];
  return svg("path", { d: `M${start} ${y1}C${middle} ${y1} ${middle} ${y2} ${to.x} ${y2}`, class: accepted ? "edge accepted" : "edge" });
}

function box(node, id, { x, y }) {
  const kind = id === 0 ? "root" : node.accepted ? "accepted" : "rejected";
  const said = id === 0 ? "before the round" : `${kind}, draft ${percent(node.draft)}, model ${percent(node.target)}`;
  return svg(
    "g",
    { class: `draft ${kind}`, role: "img", "aria-label": `${visible(node.text)}: ${said}` },
    svg("title", {}, `${visible(node.text)} — ${said}`),
    svg("rect", { x, y, width: BOX.width, height: BOX.height, rx: 5 }),
    svg("text", { x: x + BOX.width / 2, y: y + 16 }, visible(node.text, 11)),
    kind === "rejected" ? svg("line", { x1: x + 8, x2: x + BOX.width - 8, y1: y + BOX.height / 2, y2: y + BOX.height / 2 }) : null,
  );
}

function sentence(round) {
  const kept = round.nodes.filter((node) => node.accepted).map((node) => `“${visible(node.text)}”`);
  const accepted = kept.length > 0 ? `Accepted ${kept.join(" ")}` : "Accepted nothing";
  return round.next ? `${accepted}; the model added “${visible(round.next.text)}”.` : `${accepted}.`;
}
