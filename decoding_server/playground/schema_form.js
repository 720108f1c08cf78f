// A form for a JSON schema of type object. Objects inside it become groups.

import { el } from "./element.js";
import { resolved, SchemaField } from "./schema_field.js";

const STARTS = { bregman: { tau: "0.02" }, epsilon_cutoff: { epsilon: "0.001" }, eta_cutoff: { epsilon: "0.001" } };
const REQUIRED = { p: "0.9", k: "40", n: "1", mass: "0.9", epsilon: "0.001", size: "3", penalty: "1.1" };

/** What a required field begins with, so that a strategy works as soon as it is chosen. */
function start(strategy, name, required) {
  return STARTS[strategy]?.[name] ?? (required ? (REQUIRED[name] ?? "") : "");
}

export class SchemaForm {
  /** hidden: names left out. open: how many fields stand outside of "more". strategy: the name it belongs to. */
  constructor(schema, path, { hidden = [], open = 4, strategy = "" } = {}) {
    this.members = [];
    const shown = [];
    for (const [name, given] of Object.entries(schema.properties ?? {})) {
      if (hidden.includes(name)) continue;
      const property = resolved(given, schema);
      const where = `${path}.${name}`;
      const required = (schema.required ?? []).includes(name);
      if (property.type === "object" && property.properties) {
        const form = new SchemaForm({ ...property, $defs: schema.$defs }, where, { open: Infinity });
        const group = el("fieldset", { class: "group" }, el("legend", {}, name.replaceAll("_", " ")), form.element);
        this.members.push({ name, read: () => form.read(), fields: () => form.fields() });
        shown.push(group);
      } else {
        const field = new SchemaField(name, property, where, { required, start: start(strategy, name, required) });
        this.members.push({ name, read: () => field.read(), fields: () => [field] });
        shown.push(field.element);
      }
    }
    const rest = shown.slice(open);
    this.element = el("div", { class: "form" }, ...shown.slice(0, open));
    if (rest.length > 0) {
      const summary = el("summary", {}, `${rest.length} more`);
      this.element.append(el("details", {}, summary, el("div", { class: "form" }, ...rest)));
    }
  }

  fields() {
    return this.members.flatMap((member) => member.fields());
  }

  /** What was filled in, or undefined if nothing was. Throws as `SchemaField.read`. */
  read() {
    const entries = this.members.map((member) => [member.name, member.read()]).filter(([, value]) => value !== undefined);
    return entries.length > 0 ? Object.fromEntries(entries) : undefined;
  }
}
