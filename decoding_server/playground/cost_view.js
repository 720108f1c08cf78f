// What the request has spent, against its budget while it runs, and in full at the end.

import { amount, el } from "./element.js";

const UNITS = {
  forward_tokens: "forward tokens",
  output_tokens: "output tokens",
  flops: "FLOPs",
  seconds: "seconds",
};
const NAMES = {
  target_tokens: "tokens computed by the model",
  draft_tokens: "tokens computed by a draft",
  cached_tokens: "tokens from the prefix cache",
  output_tokens: "tokens generated",
  drafted_tokens: "tokens drafted",
  accepted_tokens: "of them accepted",
  rounds: "rounds of speculation",
  block_efficiency: "tokens a round",
  scorer_calls: "values asked for",
  scorer_tokens: "tokens computed for them",
  forward_passes: "forward passes",
  flops: "FLOPs",
  seconds: "seconds",
  budget_exhausted: "budget that ran out",
};

export class CostView {
  constructor() {
    this.bars = el("div", { class: "budget" });
    this.table = el("dl", { class: "facts" });
    this.element = el("section", { class: "panel", "aria-label": "Cost", hidden: true }, el("h3", {}, "Cost"), this.bars, this.table);
  }

  show(run) {
    const spend = spent(run);
    const limits = run.decoding?.budget ?? run.body.decoding?.budget ?? {};
    this.element.hidden = run.usage === null;
    const wanted = Object.keys(limits).filter((unit) => unit in UNITS);
    this.bars.replaceChildren(...wanted.map((unit) => meter(unit, spend[unit] ?? 0, limits[unit], run.stopReason)));
    const facts = run.state === "running" ? {} : (run.usage?.decoding ?? {});
    const rows = Object.entries(NAMES).filter(([name]) => facts[name]);
    const search = Object.entries(facts.search ?? {}).map(([name, value]) => [`search: ${name.replaceAll("_", " ")}`, value]);
    const picked = Object.entries(facts.picked ?? {}).map(([name, value]) => [`picked ${name}`, value]);
    this.table.replaceChildren(
      ...[...rows.map(([name, text]) => [text, facts[name]]), ...search, ...picked].flatMap(([text, value]) => [
        el("dt", {}, text),
        el("dd", {}, typeof value === "number" ? amount(value) : String(value)),
      ]),
    );
  }
}

/** The spend in the budget's units, as far as it is known. */
function spent(run) {
  const known = run.usage?.decoding;
  if (!known) return { output_tokens: run.usage?.completion_tokens ?? 0, seconds: run.seconds };
  return {
    forward_tokens: known.target_tokens + known.draft_tokens + known.scorer_tokens,
    output_tokens: known.output_tokens,
    flops: known.flops,
    seconds: run.state === "running" ? run.seconds : known.seconds,
  };
}

function meter(unit, value, limit, stopReason) {
  const share = Math.min(1, value / limit);
  const full = stopReason === `budget:${unit}`;
  const text = `${UNITS[unit]}: ${amount(value)} of ${amount(limit)}${full ? " — spent" : ""}`;
  const bar = el("div", { class: full ? "meter full" : "meter", role: "meter", "aria-label": UNITS[unit], "aria-valuemin": 0, "aria-valuemax": limit, "aria-valuenow": Math.min(value, limit) }, el("span"));
  bar.firstChild.style.setProperty("--part", `${100 * share}%`);
  return el("div", {}, el("p", { class: "hint" }, text), bar);
}
