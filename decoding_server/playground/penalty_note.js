// What a penalty did at one token: the tokens that it changed, and the structure that repeats.

import { el, visible } from "./element.js";

/** stage: an entry of a token record's `stages`. */
export function penaltyNote(stage) {
  const tokens = (stage.tokens ?? []).map((one) =>
    el("li", {}, el("code", {}, visible(one.text, 18)), ` × ${one.factor < 0.001 ? one.factor.toExponential(1) : Number(one.factor.toFixed(3))}`),
  );
  const repeats = (stage.repeats ?? []).flatMap((one) => [
    el("p", {}, describe(one)),
    el("pre", { tabindex: 0, role: "region", "aria-label": "What repeats" }, one.text || "(the unit is no longer at hand)"),
  ]);
  const where = stage.language ? ` in ${stage.language}` : "";
  return el(
    "div",
    { class: "penalty" },
    el("p", { class: "strong" }, `Penalty “${stage.stage}”${where}: ${stage.changed} tokens changed`),
    ...repeats,
    el("ul", { class: "chips" }, ...tokens),
  );
}

function describe(repeat) {
  const unit = { line: "lines", statement: "statements", tokens: "tokens" }[repeat.level] ?? repeat.level;
  const size = repeat.period === 1 ? `one of ${unit}` : `${repeat.period} ${unit}`;
  const context = repeat.context ? ` (${repeat.context})` : "";
  return `Repeats ${repeat.copies} times: a unit of ${size}${context}`;
}
