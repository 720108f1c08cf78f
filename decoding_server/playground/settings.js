// How one lane decodes: a preset or four slots, sampling, budget. Makes the request's fields, and keeps what was typed.

import { el } from "./element.js";
import { SchemaForm } from "./schema_form.js";

const SLOTS = {
  search: "Search",
  speculation: "Speculation",
  sampler: "Sampler",
  penalty: "Penalty",
};
const COMMON = {
  properties: {
    temperature: { type: "number", minimum: 0, maximum: 2, description: "0 is greedy." },
    max_tokens: { type: "integer", minimum: 1, description: "Longest answer.", default: "the context" },
    seed: { type: "integer", description: "Repeats an answer." },
  },
};
const START = { max_tokens: "96" };

export class Settings {
  /** name: "A" or "B". catalogue: GET /v1/strategies. changed: called after every change. */
  constructor(name, catalogue, changed) {
    this.name = name;
    this.catalogue = catalogue;
    this.forms = {};
    this.selects = {};
    this.typed = {};
    this.common = new SchemaForm(COMMON, "", { open: 3 });
    for (const field of this.common.fields()) {
      field.path = field.path.slice(1);
      field.input.dataset.path = field.path;
      field.input.value = START[field.path] ?? "";
    }
    this.budget = new SchemaForm(catalogue.budget, "decoding.budget", { open: 4 });
    this.slots = el("div", {}, ...Object.keys(SLOTS).map((slot) => this.slot(slot)));
    this.element = el(
      "section",
      { class: "settings", "aria-label": `Settings of ${name}` },
      this.presets(),
      this.slots,
      el("fieldset", { class: "card" }, el("legend", {}, "Sampling"), this.common.element),
      el("fieldset", { class: "card" }, el("legend", {}, "Budget"), this.budget.element),
    );
    this.element.addEventListener("input", changed);
    this.element.addEventListener("change", changed);
  }

  presets() {
    const names = Object.keys(this.catalogue.presets);
    if (names.length === 0) return null;
    const id = `preset-${this.name}`;
    this.preset = el("select", { id }, el("option", { value: "" }, "none"), ...names.map((one) => el("option", {}, one)));
    this.preset.addEventListener("change", () => {
      this.slots.hidden = this.preset.value !== "";
    });
    return el("div", { class: "field card" }, el("label", { for: id }, "Preset"), this.preset);
  }

  slot(slot) {
    const known = this.catalogue.data.filter((one) => one.slot === slot);
    const id = `${slot}-${this.name}`;
    const select = el(
      "select",
      { id, "data-path": `decoding.${slot}`, "aria-describedby": `${id}-about` },
      el("option", { value: "" }, "none"),
      ...known.map((one) => el("option", { value: one.id }, one.id)),
    );
    const about = el("p", { class: "hint", id: `${id}-about` });
    const form = el("div");
    const choose = () => {
      const strategy = known.find((one) => one.id === select.value);
      about.textContent = strategy ? strategy.summary : "";
      this.forms[slot] = strategy
        ? new SchemaForm(strategy.parameters, `decoding.${slot}`, { hidden: ["trace"], strategy: strategy.id })
        : null;
      form.replaceChildren(...(this.forms[slot] ? [this.forms[slot].element] : []));
    };
    select.addEventListener("change", choose);
    this.selects[slot] = { select, choose };
    choose();
    return el(
      "fieldset",
      { class: "card" },
      el("legend", {}, SLOTS[slot]),
      el("label", { class: "unseen", for: id }, `${SLOTS[slot]} strategy`),
      select,
      about,
      form,
    );
  }

  inputs() {
    return [...this.element.querySelectorAll("[data-path]")];
  }

  /** The fields of the request that these settings make. traced: the page wants to see the decoding. Throws Errors with
   * a `param` for what can't be sent. */
  read(traced) {
    const fields = { ...(this.common.read() ?? {}) };
    const budget = this.budget.read();
    if (this.preset?.value) {
      const preset = this.catalogue.presets[this.preset.value];
      // Faulty ones alone are no object with slots: the server says what is wrong with them.
      if (typeof preset !== "object" || "strategy" in (preset ?? {})) return { ...fields, decoding: this.preset.value };
      fields.decoding = { ...preset };
      if (budget) fields.decoding.budget = { ...preset?.budget, ...budget };
    } else {
      fields.decoding = {};
      for (const slot of Object.keys(SLOTS)) {
        const { select } = this.selects[slot];
        if (select.value) fields.decoding[slot] = { type: select.value, ...(this.forms[slot].read() ?? {}) };
      }
      if (budget) fields.decoding.budget = budget;
    }
    if (traced) withTrace(fields.decoding);
    return fields;
  }

  /** In a few words. */
  get title() {
    if (this.preset?.value) return this.preset.value;
    const chosen = Object.values(this.selects).map(({ select }) => select.value);
    return chosen.filter(Boolean).join(" + ") || "plain sampling";
  }

  /** What was chosen and typed, to be put back after a reload. */
  save() {
    const values = this.inputs().map((input) => [input.dataset.path, input.value]);
    return { preset: this.preset?.value ?? "", values: Object.fromEntries(values) };
  }

  restore(saved) {
    if (this.preset && [...this.preset.options].some((one) => one.value === saved.preset)) {
      this.preset.value = saved.preset;
      this.slots.hidden = saved.preset !== "";
    }
    for (const [slot, { select, choose }] of Object.entries(this.selects)) {
      const value = saved.values[`decoding.${slot}`] ?? "";
      if ([...select.options].some((one) => one.value === value)) select.value = value;
      choose();
    }
    for (const input of this.inputs()) {
      const value = saved.values[input.dataset.path];
      if (value !== undefined && input.tagName !== "SELECT") input.value = value;
      else if (value !== undefined && [...input.options].some((one) => one.value === value)) input.value = value;
    }
  }

  /** Marks the field that an error names and goes there. False if there is none. */
  point(param) {
    const all = this.inputs().filter((one) => !(this.slots.hidden && this.slots.contains(one)));
    const wanted = (param ?? "").replaceAll(/\[\d+\]/g, "");
    const parts = wanted.split(".");
    for (; parts.length > 0; parts.pop()) {
      const input = all.find((one) => one.dataset.path === parts.join("."));
      if (!input) continue;
      for (let box = input.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
      return mark(input);
    }
    // Of a preset there are no fields: it is at fault itself.
    return this.preset?.value && wanted.startsWith("decoding") ? mark(this.preset) : false;
  }

  /** Forgets the marks of an earlier error. */
  clear() {
    for (const input of [...this.inputs(), this.preset]) input?.removeAttribute("aria-invalid");
  }
}

function mark(input) {
  input.setAttribute("aria-invalid", "true");
  input.focus();
  return true;
}

function withTrace(decoding) {
  if (typeof decoding.search === "string") decoding.search = { type: decoding.search };
  if (decoding.search) decoding.search = { ...decoding.search, trace: "full" };
  else decoding.trace = "full";
}
