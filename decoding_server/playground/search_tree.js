// A search's tree as its events tell it: nodes appear, and more becomes known of them.

const VALUES = ["value", "q", "score", "weight", "p", "F"];

export class SearchTree {
  constructor() {
    this.nodes = new Map();
    this.programs = new Map();
    this.summary = null;
    this.version = 0;
  }

  take(record) {
    this.version += 1;
    if (record.event === "summary") this.summary = record;
    else if (record.event === "node") this.nodes.set(record.id, { ...record });
    else if (record.event === "note") this.note(record);
  }

  note({ event: _, node: id, ...notes }) {
    // The root has no event of its own.
    const node = this.nodes.get(id) ?? { id, parent: null, depth: 0, text: "", tokens: 0, end: "root", finished: false };
    Object.assign(node, notes);
    this.nodes.set(id, node);
    if (node.program !== undefined) this.programs.set(node.program, id);
  }

  /** The node above: of a program, the one that it was made from. */
  parentOf(node) {
    if (typeof node.parent_program === "number") return this.programs.get(node.parent_program) ?? 0;
    return node.parent;
  }

  /** Children by node, in order of creation; the root is 0. */
  children() {
    const found = new Map([[0, []]]);
    for (const node of this.nodes.values()) {
      if (node.id === 0) continue;
      const parent = this.parentOf(node) ?? 0;
      if (!found.has(parent)) found.set(parent, []);
      found.get(parent).push(node.id);
    }
    return found;
  }

  /** The nodes that became answers. */
  get answers() {
    return new Set(this.summary?.answers ?? []);
  }

  get size() {
    return this.nodes.size;
  }
}

/** What the search found a node worth, whatever it calls that; null if it didn't say. */
export function worth(node) {
  for (const name of VALUES) {
    if (typeof node[name] === "number") return node[name];
  }
  return null;
}

/** How many tests of a program passed, as "2/3"; null without tests. */
export function passed(node) {
  if (!Array.isArray(node.results)) return null;
  return `${node.results.filter((one) => one === "pass").length}/${node.results.length}`;
}
