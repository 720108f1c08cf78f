// One input for one property of a JSON schema. What is left empty is not sent: the server's default holds.

import { el } from "./element.js";

/** The schema behind a reference, and the one variant besides null, if there is only one. */
export function resolved(schema, root) {
  let found = schema;
  if (found.$ref) found = { ...root.$defs[found.$ref.split("/").pop()], ...found, $ref: undefined };
  const variants = (found.anyOf ?? []).filter((one) => one.type !== "null");
  if (variants.length === 1) found = { ...resolved(variants[0], root), ...found, anyOf: undefined };
  else if (variants.length > 1 && variants.every((one) => one.enum)) {
    found = { ...found, anyOf: undefined, enum: variants.flatMap((one) => one.enum) };
  }
  return found;
}

const NUMBERS = new Set(["integer", "number"]);

function parsed(kind, text) {
  if (kind === "number") {
    const value = Number(text);
    if (!Number.isFinite(value)) throw new Error("must be a number");
    return value;
  }
  if (kind === "boolean") return text === "true";
  if (kind === "json") {
    try {
      return JSON.parse(text);
    } catch {
      throw new Error("must be JSON, such as [2, 2, 1]");
    }
  }
  if (kind === "loose") {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }
  return text;
}

function kindOf(schema) {
  if (schema.enum || schema.const !== undefined) return "text";
  if (schema.type === "boolean") return "boolean";
  if (NUMBERS.has(schema.type)) return "number";
  if (schema.type === "string") return "text";
  return schema.anyOf ? "loose" : "json";
}

function placeholder(schema) {
  const value = schema.default;
  if (value === undefined || value === null) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function range(schema) {
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const most = schema.maximum ?? schema.exclusiveMaximum;
  const high = most > Number.MAX_SAFE_INTEGER ? undefined : most;
  if (low !== undefined && high !== undefined) return `${low} to ${high}`;
  if (low !== undefined) return `at least ${low}`;
  return high !== undefined ? `at most ${high}` : "";
}

function control(schema, kind, properties) {
  const options = kind === "boolean" ? ["true", "false"] : schema.enum;
  if (options) {
    const usual = placeholder(schema);
    return el(
      "select",
      properties,
      el("option", { value: "" }, usual === "" ? "default" : `default (${usual})`),
      ...options.map((value) => el("option", { value }, String(value))),
    );
  }
  const hint = placeholder(schema);
  if (kind === "json" || (kind === "text" && (schema.maxLength ?? 0) > 1000)) {
    return el("textarea", { ...properties, rows: 2, placeholder: hint, spellcheck: "false" });
  }
  const numeric = kind === "number" ? { inputmode: schema.type === "integer" ? "numeric" : "decimal" } : {};
  return el("input", { ...properties, type: "text", autocomplete: "off", placeholder: hint, ...numeric });
}

let counter = 0;

/** A labelled input. name: shown; path: where its value stands in the request; required: must be filled. */
export class SchemaField {
  constructor(name, schema, path, { required = false, start = "" } = {}) {
    this.path = path;
    this.required = required;
    this.kind = kindOf(schema);
    counter += 1;
    const id = `field-${counter}`;
    this.input = control(schema, this.kind, { id, "data-path": path, "aria-describedby": `${id}-hint`, required });
    this.input.value = start;
    const [description, limits] = [schema.description ?? "", range(schema)];
    const about = description.includes(limits) ? description : `${description} ${limits}`.trim();
    this.hint = el("span", { class: "hint", id: `${id}-hint` }, about);
    this.element = el(
      "div",
      { class: "field" },
      el("label", { for: id }, name.replaceAll("_", " "), required ? el("span", { class: "mark" }, " required") : null),
      this.input,
      this.hint,
    );
  }

  /** The value, or undefined for the server's default. Throws an Error that says what is wrong. */
  read() {
    this.input.removeAttribute("aria-invalid");
    const text = this.input.value.trim();
    if (text === "") {
      if (!this.required) return undefined;
      return this.fail("is required");
    }
    try {
      return parsed(this.kind, text);
    } catch (error) {
      return this.fail(error.message);
    }
  }

  fail(message) {
    this.input.setAttribute("aria-invalid", "true");
    const error = new Error(`'${this.path}' ${message}.`);
    error.param = this.path;
    throw error;
  }
}
