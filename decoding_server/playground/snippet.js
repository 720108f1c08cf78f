// The same request for other clients: curl and Python.

import { el } from "./element.js";

const STANDARD = new Set(["model", "messages", "temperature", "max_tokens", "seed", "stream"]);

function address() {
  return new URL("v1", document.baseURI).href;
}

/** A shell command. */
export function curl(body) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${address()}/chat/completions \\\n  -H 'content-type: application/json' \\\n  -H "authorization: Bearer $KEY" \\\n  -d '${json}'`;
}

function literal(value, depth) {
  const pad = "    ".repeat(depth + 1);
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map((one) => literal(one, depth)).join(", ")}]`;
  if (typeof value === "object") {
    const lines = Object.entries(value).map(([key, one]) => `${pad}${JSON.stringify(key)}: ${literal(one, depth + 1)},\n`);
    return lines.length > 0 ? `{\n${lines.join("")}${"    ".repeat(depth)}}` : "{}";
  }
  return JSON.stringify(value);
}

/** A program for OpenAI's client. */
export function python(body) {
  const known = Object.entries(body).filter(([name]) => STANDARD.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !STANDARD.has(name)));
  const lines = known.map(([name, value]) => `    ${name}=${literal(value, 1)},\n`);
  if (Object.keys(extra).length > 0) lines.push(`    extra_body=${literal(extra, 1)},\n`);
  return (
    "import os\n\nfrom openai import OpenAI\n\n" +
    `client = OpenAI(base_url=${JSON.stringify(address())}, api_key=os.environ.get("KEY", "unused"))\n` +
    `answer = client.chat.completions.create(\n${lines.join("")})\n` +
    "print(answer.choices[0].message.content)\nprint(answer.usage)"
  );
}

/** A view with both, for `show(body)`. */
export class SnippetView {
  constructor() {
    this.code = el("code");
    this.said = el("span", { class: "hint", role: "status" });
    this.language = "curl";
    this.buttons = ["curl", "Python"].map((name) =>
      el("button", { type: "button", "aria-pressed": name === "curl", on: { click: () => this.choose(name) } }, name),
    );
    const copy = el("button", { type: "button", on: { click: () => this.copy() } }, "Copy");
    this.element = el(
      "details",
      { class: "panel snippet" },
      el("summary", {}, "This request as code"),
      el("div", { class: "row" }, ...this.buttons, copy, this.said),
      el("pre", { tabindex: 0, role: "region", "aria-label": "Request as code" }, this.code),
    );
  }

  choose(name) {
    this.language = name;
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.textContent === name));
    this.draw();
  }

  show(body) {
    this.body = body;
    this.draw();
  }

  draw() {
    if (this.body) this.code.textContent = this.language === "curl" ? curl(this.body) : python(this.body);
    this.said.textContent = "";
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.code.textContent);
      this.said.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(this.code);
      this.said.textContent = "Selected: copy it with the keyboard.";
    }
  }
}
