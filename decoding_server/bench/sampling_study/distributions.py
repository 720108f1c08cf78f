"""Part `bregman`: what Bregman decoding keeps of real next-token distributions.

Each context is continued greedily; at its end and at some places of the continuation the model's distribution goes
through the server's own pipeline stages: Bregman decoding on a grid of (mode, alpha, tau), and the usual truncations.
Only the size of the result is looked at, nothing is drawn from it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from decoding_server.bench.rows import Row
from decoding_server.bench.sampling_study.subject import Output, Subject
from decoding_server.bench.sampling_study.texts import Context
from decoding_server.bench.sampling_study.waves import Wave, cut
from strategies.runtime import Generation, SamplingParameters, StopConditions
from strategies.sampling.bregman.generator import Mode
from strategies.sampling.bregman.transform import Bregman
from strategies.sampling.transform import Transform
from strategies.sampling.truncation import MinP, TopK, TopP

PLACES = (0, 4, 8, 16, 32)
"""Tokens of the greedy continuation before the place that is looked at."""
TEMPERATURES = (1.0, 1.5)
TAUS = (0.1, 0.05, 0.02, 0.01, 0.005)
FAMILIES: tuple[tuple[Mode, float], ...] = (
    ("primal", 1.0),
    ("primal", 1.5),
    ("primal", 2.0),
    ("primal", 3.0),
    ("dual", 1.5),
    ("dual", 3.0),
)
"""The paper's alphas (1 is top-k's renormalisation), and one beyond. At alpha = 2 the dual is the primal."""
REFERENCES: tuple[Transform, ...] = (TopP(p=0.9), TopP(p=0.95), MinP(p=0.05), MinP(p=0.1), TopK(k=50))
EXAMPLE_TOKENS = 40
EXAMPLE_TAU = 0.02


def configurations() -> dict[str, tuple[dict[str, Any], Transform | None]]:
    """Name -> (how it is reported, the stage). "none" is the distribution as it is."""
    found: dict[str, tuple[dict[str, Any], Transform | None]] = {"none": ({"sampler": "none"}, None)}
    for mode, alpha in FAMILIES:
        for tau in TAUS:
            stage = Bregman(mode=mode, alpha=alpha, tau=tau)
            facts = {"sampler": "bregman", "mode": mode, "alpha": alpha, "tau": tau, "lambda": stage.penalty}
            found[f"{mode} alpha={alpha:g} tau={tau:g}"] = (facts, stage)
    for reference in REFERENCES:
        values = reference.model_dump()
        name = " ".join([reference.name, *(f"{value:g}" for value in values.values())])
        found[name] = ({"sampler": reference.name, **values}, reference)
    return found


def waves(model: str, contexts: Sequence[Context], size: int) -> list[Wave]:
    """All cells of a model, `size` contexts at a time."""
    return [
        Wave(
            f"{model}: distributions",
            tuple(_key(model, context) for context in part),
            partial(measure, contexts=part),
        )
        for part in cut(contexts, size)
    ]


def _key(model: str, context: Context) -> str:
    return f"{model}|{context.kind}|{context.number}"


async def measure(subject: Subject, contexts: Sequence[Context]) -> list[Row]:
    """One row per context, with all its places."""
    prompts = [prompt_ids(subject, context) for context in contexts]
    stopping = StopConditions(max_tokens=max(PLACES))
    greedy = SamplingParameters(temperature=0)
    outputs = await subject.generate([Generation(prompt, greedy, stopping) for prompt in prompts])
    return [
        {
            "key": _key(subject.name, context),
            "model": subject.name,
            "kind": context.kind,
            "number": context.number,
            "places": _places(subject, prompt, output),
        }
        for context, prompt, output in zip(contexts, prompts, outputs, strict=True)
    ]


def prompt_ids(subject: Subject, context: Context) -> list[int]:
    if context.kind == "chat":
        text = subject.tokenizer.render_chat([{"role": "user", "content": context.text}])
        return subject.tokenizer.encode(text, add_special_tokens=False)
    return subject.tokenizer.encode(context.text)


def _places(subject: Subject, prompt: list[int], output: Output) -> list[dict[str, Any]]:
    """Those that the continuation reaches: nothing is looked at behind its end."""
    generated = len(output.tokens) - (output.reason == "stop")
    places = [place for place in PLACES if place <= generated]
    tokens = [*prompt, *output.tokens[: places[-1]]]
    logits = subject.logits(tokens, [len(prompt) - 1 + place for place in places])
    found: list[dict[str, Any]] = [{"place": place, "temperatures": {}} for place in places]
    for temperature in TEMPERATURES:
        for entry, results in zip(found, sizes(logits / temperature), strict=True):
            entry["temperatures"][f"{temperature:g}"] = results
    found[0]["example"] = example(logits[:1])
    return found


def sizes(logits: Tensor) -> list[dict[str, list[float]]]:
    """Logits [R, V] -> for each row, configuration -> [k, kept mass under p, entropy of q in nats]."""
    p = logits.double().softmax(-1)
    found: list[dict[str, list[float]]] = [{} for _ in p]
    for name, (_, stage) in configurations().items():
        rows, ids, q = outcome(logits, stage)
        zeros = p.new_zeros(len(p))
        k = rows.bincount(minlength=len(p)).tolist()
        mass = zeros.index_add(0, rows, p[rows, ids]).tolist()
        entropy = zeros.index_add(0, rows, torch.special.entr(q)).tolist()
        for row, values in zip(found, zip(k, mass, entropy, strict=True), strict=True):
            row[name] = [round(value, 7) for value in values]
    return found


def outcome(logits: Tensor, stage: Transform | None) -> tuple[Tensor, Tensor, Tensor]:
    """What a stage keeps of logits [R, V], which are only read: rows and token ids int64 [N], probabilities float64."""
    after = logits if stage is None else stage.apply(logits.clone(), [], [stage] * len(logits))
    rows, ids = (after > -torch.inf).nonzero().unbind(-1)
    weights = (after[rows, ids] - after.amax(-1)[rows]).double().exp()
    return rows, ids, weights / weights.new_zeros(len(logits)).index_add(0, rows, weights)[rows]


def example(logits: Tensor) -> dict[str, list[float]]:
    """p of the most likely tokens of one row [1, V], and their q for each primal alpha at EXAMPLE_TAU."""
    values, order = logits[0].double().softmax(-1).topk(EXAMPLE_TOKENS)
    found = {"p": values.tolist()}
    for mode, alpha in FAMILIES:
        if mode == "primal":
            _, ids, q = outcome(logits, Bregman(mode=mode, alpha=alpha, tau=EXAMPLE_TAU))
            found[f"{alpha:g}"] = q.new_zeros(logits.shape[-1]).index_put((ids,), q)[order].tolist()
    return {name: [round(value, 7) for value in numbers] for name, numbers in found.items()}
