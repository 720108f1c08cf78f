// The search tree, growing: fill is value, dashes are pruned, a double ring is a finished answer, the thick one won.

import { amount, arrowKeys, el, oncePerFrame, setText, svg, visible } from "./element.js";
import { passed, worth } from "./search_tree.js";
import { layout } from "./tree_layout.js";

const COLUMN = 34;
const ROW = 62;
const MARGIN = 24;
const LABELLED = 80;
const PLAIN = new Set(["event", "id", "parent", "text", "depth", "finished", "pruned", "chosen", "end", "results"]);

export class TreeView {
  constructor() {
    this.chosen = null;
    this.detail = el("div", { class: "detail", role: "status" });
    this.caption = el("p", { class: "hint" });
    this.canvas = el("div", { class: "canvas", tabindex: -1 });
    this.element = el(
      "section",
      { class: "panel tree", "aria-label": "Search tree", hidden: true },
      el("h3", {}, "Search tree"),
      this.caption,
      this.canvas,
      legend(),
      this.detail,
    );
    this.redraw = oncePerFrame(() => this.draw());
    arrowKeys(this.canvas, () => [...this.canvas.querySelectorAll("[data-node]")], (node) => this.choose(Number(node.dataset.node)));
  }

  show(run) {
    if (this.run !== run) this.chosen = null;
    const same = this.run === run && this.version === run.tree.version && this.state === run.state;
    this.run = run;
    this.version = run.tree.version;
    this.state = run.state;
    this.element.hidden = run.tree.size === 0;
    if (!same && run.tree.size > 0) this.redraw();
  }

  choose(id) {
    this.chosen = id;
    for (const node of this.canvas.querySelectorAll("[data-node]")) {
      const here = Number(node.dataset.node) === id;
      node.setAttribute("aria-pressed", String(here));
      node.setAttribute("tabindex", here ? "0" : "-1");
    }
    this.tell();
  }

  draw() {
    const { tree } = this.run;
    const children = tree.children();
    const { places, columns, rows } = layout(children);
    const width = Math.max(columns * COLUMN, COLUMN) + 2 * MARGIN - COLUMN;
    const height = (rows - 1) * ROW + 2 * MARGIN + 12;
    const at = (id) => ({ x: MARGIN + places.get(id).column * COLUMN, y: MARGIN + places.get(id).row * ROW });
    const values = [...tree.nodes.values()].map(worth).filter((value) => value !== null);
    const low = Math.min(0, ...values);
    const high = Math.max(1, ...values);
    const answers = tree.answers;
    const focused = this.canvas.contains(document.activeElement) ? document.activeElement.dataset.node : null;
    const edges = [];
    const nodes = [];
    for (const id of places.keys()) {
      const node = tree.nodes.get(id) ?? { id, text: "", depth: 0, tokens: 0 };
      for (const child of children.get(id) ?? []) edges.push(edge(at(id), at(child), tree.nodes.get(child)));
      const value = worth(node);
      const share = value === null ? null : (value - low) / (high - low);
      nodes.push(this.node(node, at(id), share, answers.has(id), places.size <= LABELLED));
    }
    this.canvas.replaceChildren(
      svg(
        "svg",
        { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Tree of ${places.size - 1} nodes` },
        ...edges,
        ...nodes,
      ),
    );
    if (focused !== null) this.canvas.querySelector(`[data-node="${Number(focused)}"]`)?.focus({ preventScroll: true });
    setText(this.caption, captionOf(tree));
    this.tell();
  }

  node(node, { x, y }, share, answer, labelled) {
    const pruned = node.pruned === true || node.bad === true;
    const kinds = ["node"];
    if (pruned) kinds.push("pruned");
    if (node.finished) kinds.push("finished");
    if (answer) kinds.push("answer");
    if (node.chosen) kinds.push("chosen");
    const radius = node.id === 0 ? 5 : Math.min(11, 6 + Math.log2(1 + (node.visits ?? 0)));
    const circle = svg("circle", { cx: x, cy: y, r: radius, class: "disc" });
    if (share !== null) circle.style.setProperty("--share", `${Math.round(100 * share)}%`);
    const label = passed(node) ?? (worth(node) === null ? null : shortly(worth(node)));
    const current = this.chosen === node.id || (this.chosen === null && node.id === 0);
    return svg(
      "g",
      {
        class: kinds.join(" "),
        "data-node": node.id,
        tabindex: current ? 0 : -1,
        role: "button",
        "aria-pressed": String(this.chosen === node.id),
        "aria-label": nameOf(node, pruned, answer),
        on: { click: () => this.choose(node.id), focus: () => this.choose(node.id) },
      },
      svg("circle", { cx: x, cy: y, r: COLUMN / 2, class: "hit" }),
      node.finished ? svg("circle", { cx: x, cy: y, r: radius + 3, class: "ring" }) : null,
      circle,
      pruned ? svg("path", { d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8`, class: "cross" }) : null,
      labelled && label !== null ? svg("text", { x, y: y + radius + 14 }, label) : null,
    );
  }

  tell() {
    const node = this.chosen === null ? null : this.run.tree.nodes.get(this.chosen);
    // Nothing new of the node: its text stays as it is, scrolled and selected.
    const told = JSON.stringify(node ? [node, this.run.tree.answers.has(node.id)] : null);
    if (told === this.told) return;
    this.told = told;
    if (!node) {
      this.detail.replaceChildren(el("p", { class: "hint" }, "Choose a node to read it (arrow keys move)."));
      return;
    }
    const facts = Object.entries(node).filter(([name, value]) => !PLAIN.has(name) && value !== null && value !== undefined);
    const tests = (node.results ?? []).map((one, number) =>
      el("li", { class: one === "pass" ? "passed" : "failed" }, `test ${number + 1}: ${one}`),
    );
    this.detail.replaceChildren(
      el("p", { class: "strong" }, nameOf(node, node.pruned, this.run.tree.answers.has(node.id))),
      el("pre", { tabindex: 0, role: "region", "aria-label": "Text of the node" }, node.text || "(no text)"),
      ...(tests.length > 0 ? [el("ul", { class: "tests" }, ...tests)] : []),
      el("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, written(value))])),
    );
  }
}

function edge(from, to, child) {
  const middle = (from.y + to.y) / 2;
  const pruned = child?.pruned === true || child?.bad === true;
  return svg("path", {
    d: `M${from.x} ${from.y}C${from.x} ${middle} ${to.x} ${middle} ${to.x} ${to.y}`,
    class: pruned ? "edge pruned" : "edge",
  });
}

function shortly(value) {
  return Number.isInteger(value) ? String(value) : value.toFixed(2).replace(/^(-?)0\./, "$1.");
}

function written(value) {
  return typeof value === "object" ? JSON.stringify(value) : amount(value);
}

function nameOf(node, pruned, answer) {
  const parts = [node.id === 0 ? "Root" : `Node ${node.id}`];
  if (node.program !== undefined) parts.push(`program ${node.program}`);
  if (worth(node) !== null) parts.push(`value ${amount(worth(node))}`);
  if (node.visits !== undefined) parts.push(`${node.visits} visits`);
  if (passed(node) !== null) parts.push(`${passed(node)} tests passed`);
  if (pruned) parts.push("pruned");
  if (node.finished) parts.push("finished");
  if (answer) parts.push("the answer");
  if (node.text) parts.push(visible(node.text, 40));
  return parts.join(", ");
}

function captionOf(tree) {
  const all = [...tree.nodes.values()].filter((node) => node.id !== 0);
  const pruned = all.filter((node) => node.pruned || node.bad).length;
  const finished = all.filter((node) => node.finished).length;
  const depth = Math.max(0, ...all.map((node) => node.depth));
  const parts = [`${all.length} nodes`, `depth ${depth}`, `${finished} finished`];
  if (pruned > 0) parts.push(`${pruned} pruned`);
  if (tree.summary?.stop_reason) parts.push(`ended: ${tree.summary.stop_reason}`);
  return parts.join(" · ");
}

function legend() {
  const item = (kind, text, extra) =>
    el(
      "li",
      {},
      svg("svg", { width: 22, height: 22, viewBox: "0 0 22 22", "aria-hidden": "true" }, svg("g", { class: `node ${kind}` }, ...extra, svg("circle", { cx: 11, cy: 11, r: 6, class: "disc" }))),
      text,
    );
  return el(
    "ul",
    { class: "legend" },
    item("", "open", []),
    item("finished", "finished", [svg("circle", { cx: 11, cy: 11, r: 9, class: "ring" })]),
    item("pruned", "pruned", []),
    item("answer", "the answer", []),
    el("li", {}, "the fuller, the higher its value"),
  );
}
