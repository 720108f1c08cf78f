// Elements by DOM calls alone. Text is always a text node, so nothing that a model writes can become markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An HTML element. properties: attributes, and `on`: listeners by event. children: elements and strings. */
export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** An SVG element, likewise. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

/** Sets a text by as little as makes it so: a selection in it stays, and a screen reader is told only of what is new. */
export function setText(node, text) {
  const old = node.textContent;
  if (text === old) return;
  if (old !== "" && text.startsWith(old) && node.firstChild === node.lastChild) node.firstChild.appendData(text.slice(old.length));
  else node.textContent = text;
}

/** A text with its invisible characters made visible, cut to `most` characters. */
export function visible(text, most = Infinity) {
  const shown = text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "·");
  const cut = shown.length > most ? `${shown.slice(0, most - 1)}…` : shown;
  return cut === "" ? "∅" : cut;
}

/** A probability or a share, as a reader wants it. */
export function percent(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 %";
  if (value < 0.0005) return "<0.1 %";
  return `${(100 * value).toFixed(value < 0.0995 ? 2 : 1)} %`;
}

/** A count or an amount, short. */
export function amount(value) {
  if (typeof value !== "number") return String(value);
  if (Math.abs(value) >= 1e6) return value.toExponential(2);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return value.toPrecision(3);
}

/** Calls `draw` at most once per frame, however often the returned function is called. */
export function oncePerFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}

/** Arrow keys, Home and End move among the items of a list with one tab stop. items: () => elements in order. */
export function arrowKeys(container, items, choose) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  container.addEventListener("keydown", (event) => {
    const all = items();
    const at = all.indexOf(document.activeElement);
    if (at < 0) return;
    let next = null;
    if (event.key in steps) next = at + steps[event.key];
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = all.length - 1;
    if (next === null || next < 0 || next >= all.length) return;
    event.preventDefault();
    all[next].focus();
    choose(all[next]);
  });
}
