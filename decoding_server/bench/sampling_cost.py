"""What sampling costs on this CPU: Bregman decoding, its share of a decode step, and the grammar repetition penalty.

Example: python -m decoding_server.bench.sampling_cost --write-docs
Torch operations and the compiled kernel, and the numbers of threads, take turns round by round, so that a busy moment
of the machine hits all of them. Logits are the embedded model's; for the larger vocabulary each row is resampled.
"""

import argparse
import contextlib
import datetime
import inspect
import json
import os
import statistics
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from decoding_server.bench import machine, workload_file
from decoding_server.bench.passages import PASSAGES
from decoding_server.bench.report import percentile
from decoding_server.openmp import CHOICES
from models.loading import resolve
from models.tokenizer import HuggingFaceTokenizer, load_tokenizer
from models.torch_runtime.batch import PackedBatch, Segment
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.model import ForwardModel
from models.torch_runtime.weights import draw_with, kernels_for, load_model
from strategies.runtime import Generation, SamplingParameters
from strategies.sampling.bregman import decode
from strategies.sampling.bregman.parameters import BregmanParameters
from strategies.sampling.bregman.plan import plan
from strategies.sampling.bregman.transform import Bregman
from strategies.sampling.grammar_repetition.options import GrammarRepetitionOptions
from strategies.sampling.grammar_repetition.state import GrammarRepetitionState
from strategies.sampling.pipeline import target
from strategies.sampling.row import Row
from strategies.sampling.standard import sampling

DOCS = Path("docs/strategies/sampling-cost.md")
BEGIN, END = "<!-- sampling-cost:begin -->", "<!-- sampling-cost:end -->"

K_MAX = 256
SHAPES = ((151_936, 32), (49_152, 16))
"""Vocabulary and rows: the first is that of Qwen2.5 and Qwen3, the second the embedded model's."""

WAYS: dict[str, dict[str, Any]] = {
    "primal 1, adaptive": {"alpha": 1.0, "tau": 0.004, "k_max": K_MAX},
    "primal 1.5, adaptive": {"alpha": 1.5, "tau": 0.004, "k_max": K_MAX},
    "primal 2, adaptive": {"alpha": 2.0, "tau": 0.004, "k_max": K_MAX},
    "dual 2, adaptive": {"alpha": 2.0, "mode": "dual", "tau": 0.004, "k_max": K_MAX},
    "primal 1, k = 256": {"alpha": 1.0, "k": K_MAX},
    "primal 1.5, k = 256": {"alpha": 1.5, "k": K_MAX},
    "primal 2, k = 256": {"alpha": 2.0, "k": K_MAX},
    "primal inf, k = 256": {"alpha": "inf", "k": K_MAX},
    "dual 1, k = 256": {"alpha": 1.0, "mode": "dual", "k": K_MAX},
    "dual 2, k = 256": {"alpha": 2.0, "mode": "dual", "k": K_MAX},
}
STEP_WAYS: dict[str, dict[str, Any] | None] = {
    "none: temperature alone": None,
    "Bregman 1.5, tau = 0.01": {"alpha": 1.5, "tau": 0.01},
    "Bregman 2, k = 256": {"alpha": 2.0, "k": K_MAX},
}
STEP_ROWS, CONTEXT = 16, 128
GRAMMAR_TOKENS = 3000


class Reader:
    """The embedded model, and the logits and steps that it gives."""

    def __init__(self) -> None:
        folder = resolve(None).folder
        config = json.loads((folder / "config.json").read_text())
        self.tokenizer: HuggingFaceTokenizer = load_tokenizer(folder)
        self.model: ForwardModel = load_model(folder, config, dtype=torch.float16, device=torch.device("cpu"))
        shape = self.model.shape
        self.pool = SlotPool(
            num_layers=shape.num_layers,
            num_slots=STEP_ROWS * (CONTEXT + 1) + 512,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.kv_dtype,
            device=shape.device,
        )

    def logits(self, count: int) -> Tensor:
        """float32 [count, V]: next-token logits at places spread over the passages."""
        rows: list[Tensor] = []
        for passage in PASSAGES:
            tokens = self.tokenizer.encode(passage)[:160]
            slots = self.pool.allocate(len(tokens))
            segment = Segment.chain(np.array(tokens), slots, slots[:0])
            hidden = self.model.forward(PackedBatch([segment], self.model.shape.device), self.pool)
            self.pool.free(slots)
            rows.append(self.model.logits(hidden[10::12]).float().clone())
        found = torch.cat(rows)
        return found[torch.linspace(0, len(found) - 1, count).long()].contiguous()


def resampled(logits: Tensor, V: int) -> Tensor:
    """Rows of another vocabulary size [R, V]: each row's own values, the best 200 once and the others as often as it
    takes, in random order."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for row in logits:
        values = row.sort(descending=True).values
        others = values[200:][torch.randint(len(values) - 200, (V - 200,), generator=generator)]
        rows.append(torch.cat([values[:200], others])[torch.randperm(V, generator=generator)])
    return torch.stack(rows)


def median_and_least(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f})"


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """torch and the kernels on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_kernel(logits: Tensor, rounds: int) -> list[str]:
    """The table's rows for one shape: torch operations and kernel, one thread and two."""
    R, V = logits.shape
    lines = []
    for name, parameters in WAYS.items():
        batch = plan([BregmanParameters.model_validate(parameters)] * R, V)

        def run(count: int, native: bool, batch: Any = batch) -> float:
            with threads(count):
                started = time.perf_counter()
                decode.kept(logits, batch, native)
                return 1000 * (time.perf_counter() - started)

        cells: dict[tuple[bool, int], list[float]] = {(native, n): [] for native in (False, True) for n in (1, 2)}
        for turn in range(rounds + 2):
            for (native, count), values in cells.items():
                # The thread that joins in must have been woken before: in a server it was at work a moment ago.
                run(count, native)
                found = run(count, native)
                if turn >= 2:
                    values.append(found)
        k = decode.decode(logits, batch).k.double().mean()
        ratio = statistics.median(a / b for a, b in zip(cells[False, 2], cells[True, 2], strict=True))
        lines.append(
            f"| {V:,} x {R} | {name} | {k:.0f} | "
            + " | ".join(median_and_least(values) for values in cells.values())
            + f" | {ratio:.1f} |"
        )
    return lines


def rows_for(parameters: dict[str, Any] | None) -> list[Row]:
    transforms = [] if parameters is None else [Bregman.model_validate(parameters)]
    wanted: SamplingParameters = sampling(temperature=0.9, transforms=transforms)
    return [Row(Generation([0], wanted, seed=seed), frozenset()) for seed in range(STEP_ROWS)]


def measure_step(reader: Reader, rounds: int) -> list[str]:
    """A decode step of 16 sequences of 128 tokens, and beside it what follows it: pipeline, check, draw."""
    model, pool = reader.model, reader.pool
    draw = draw_with(kernels_for(model.shape.device))
    slots = [pool.allocate(CONTEXT + 1) for _ in range(STEP_ROWS)]
    tokens = [reader.tokenizer.encode(PASSAGES[i % len(PASSAGES)])[: CONTEXT + 1] for i in range(STEP_ROWS)]
    for one, ids in zip(slots, tokens, strict=True):
        model.forward(PackedBatch([Segment.chain(np.array(ids[:-1]), one[:-1], one[:0])], model.shape.device), pool)
    segments = [Segment.chain(np.array(ids[-1:]), one[-1:], one[:-1]) for one, ids in zip(slots, tokens, strict=True)]
    positions = [CONTEXT + 1] * STEP_ROWS

    def forward() -> Tensor:
        return model.logits(model.forward(PackedBatch(segments, model.shape.device), pool))

    def sample(logits: Tensor, rows: list[Row], written: bool) -> None:
        targets = target(logits, rows)
        if written:
            targets.logits  # noqa: B018
        torch.stack([targets.sample(rows, positions, draw), targets.faulty().long()]).tolist()

    steps: list[float] = []
    found: dict[tuple[str, bool], list[float]] = {}
    for turn in range(rounds + 2):
        for name, parameters in STEP_WAYS.items():
            rows = rows_for(parameters)
            for native in (False, True) if parameters else (True,):
                started = time.perf_counter()
                logits = forward()
                middle = time.perf_counter()
                off = contextlib.nullcontext() if native else mock.patch.object(decode, "kernel", return_value=None)
                with off:
                    sample(logits, rows, written=not native)
                if turn >= 2:
                    steps.append(1000 * (middle - started))
                    found.setdefault((name, native), []).append(1000 * (time.perf_counter() - middle))
    for one in slots:
        pool.free(one)
    step = statistics.median(steps)
    lines = []
    for (name, native), values in found.items():
        ways = "" if name.startswith("none") else ", kernel" if native else ", torch operations"
        share = statistics.median(values) / step
        lines.append(f"| {name}{ways} | {step:.1f} | {median_and_least(values)} | {100 * share:.1f} % |")
    return lines


def grammar_texts() -> dict[str, str]:
    """Python as people write it, and a loop whose names change from copy to copy."""
    loop = "".join(f"    if name == 'field_{i}':\n        self.field_{i} = read(value, {i})\n" for i in range(400))
    return {
        "ordinary code": inspect.getsource(argparse) + inspect.getsource(textwrap),
        "a repeating block": "def load(self, name, value):\n" + loop,
    }


def measure_grammar(tokenizer: HuggingFaceTokenizer) -> list[str]:
    """Per generated token: `advance` and `penalties`, as a step calls them."""
    lines = []
    for kind, text in grammar_texts().items():
        ids = tokenizer.encode(text)[:GRAMMAR_TOKENS]
        for level in ("line", "statement", "both"):
            options = GrammarRepetitionOptions.model_validate({"language": "python", "level": level, "scope": "all"})
            started = time.perf_counter()
            state = GrammarRepetitionState(options, tokenizer, ids[:1])
            first = 1000 * (time.perf_counter() - started)
            costs = []
            for token in ids[1:]:
                started = time.perf_counter()
                state.advance(token)
                state.penalties()
                costs.append(1000 * (time.perf_counter() - started))
            lines.append(
                f"| {kind}, level {level} | {len(costs)} | {statistics.mean(costs):.3f} | "
                f"{percentile(costs, 50):.3f} | {percentile(costs, 99):.2f} | {max(costs):.2f} | {first:.0f} |"
            )
    return lines


@torch.inference_mode()
def report(rounds: int, shapes: Sequence[tuple[int, int]] = SHAPES) -> str:
    """All tables, as Markdown."""
    torch.set_num_threads(min(2, machine.usable_cores()))
    reader = Reader()
    real = reader.logits(max(R for _, R in shapes))
    kernel_lines = []
    for V, R in shapes:
        logits = real[:R] if real.shape[-1] == V else resampled(real[:R], V)
        kernel_lines += measure_kernel(logits.contiguous(), rounds)
    about = machine.describe()
    waiting = ", ".join(f"{name}={value}" for name in CHOICES if (value := os.environ.get(name)))
    lines = [
        f"{datetime.date.today()}, commit {machine.commit()}: {about['processor']}, {about['cores']} cores "
        f"({', '.join(machine.instruction_sets())}), torch {torch.__version__}, Python {about['python']}, "
        f"{waiting or 'no OpenMP settings'}, load average {about['load_average_at_start']} at the start. "
        f"{rounds} rounds.",
        "",
        "Bregman decoding of a batch of logits (the kept tokens and their probabilities), milliseconds per batch: "
        "median (lowest). Ratio: torch operations over kernel on two threads, median of the rounds' ratios.",
        "",
        "| vocabulary x rows | alpha and k | mean k | torch, 1 thread | torch, 2 threads | kernel, 1 thread | "
        "kernel, 2 threads | ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *kernel_lines,
        "",
        f"What follows the forward pass of a decode step of {STEP_ROWS} sequences of {CONTEXT} tokens (pipeline with "
        "temperature, check for faulty rows, draw), milliseconds. Torch operations: the whole vocabulary written out, "
        "as where there is no kernel.",
        "",
        "| sampler | forward pass | sampling | share of the forward pass |",
        "| --- | ---: | ---: | ---: |",
        *measure_step(reader, rounds),
        "",
        "Grammar repetition penalty (guarded mode, Python), milliseconds per generated token. First: making a "
        "sequence's state; the first of all reads the vocabulary, which a server does when it starts.",
        "",
        "| text | tokens | mean | median | 99th percentile | highest | first |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *measure_grammar(reader.tokenizer),
    ]
    return "\n".join(lines) + "\n"


def write_docs(table: str, path: Path) -> None:
    """Replaces what stands between the markers. Raises SystemExit where there are none."""
    text = path.read_text() if path.exists() else ""
    if BEGIN not in text or END not in text:
        raise SystemExit(f"error: {path} has no lines {BEGIN} and {END}")
    head, rest = text.split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n{table}{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m decoding_server.bench.sampling_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument(
        "--write-docs", nargs="?", type=Path, const=DOCS, help=f"write the tables to this file ({DOCS})"
    )
    arguments = workload_file.parsed(parser, None)
    table = report(arguments.rounds)
    print(table)
    if arguments.write_docs:
        write_docs(table, arguments.write_docs)


if __name__ == "__main__":
    main()
