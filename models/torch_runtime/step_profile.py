"""Where the time of a decode step goes, by part: `python -m models.torch_runtime.step_profile [MODEL]`.

Runs the fused decoder on batches of single tokens and times every call between them. Prints a Markdown table, in
milliseconds per step (median of the steps).
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from models.loading import resolve
from models.torch_runtime.batch import PackedBatch, Segment
from models.torch_runtime.decoder import FusedDecoder
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.weights import load_model

STEPS, WARM_UP = 30, 5
PARTS = ("linears", "attention", "norms, rotary, activation", "output head", "the rest")
BATCHES = {"1 sequence of 128": (1, 128), "16 sequences of 128": (16, 128), "16 sequences of 544": (16, 544)}
KERNELS = ("rms_norm", "add_rms_norm", "rope_store", "silu_mul", "tree_attention")


class Clock:
    """Adds up what the wrapped calls take, by part."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = call(*arguments, **options)
            self.seconds[part] += time.perf_counter() - started
            return result

        return timed


class TimedKernels:
    """A model's kernels with a clock around each."""

    def __init__(self, kernels: Any, clock: Clock) -> None:
        self.name = kernels.name
        for name in KERNELS:
            part = PARTS[1] if name == "tree_attention" else PARTS[2]
            setattr(self, name, clock.timed(part, getattr(kernels, name)))


def instrument(model: FusedDecoder, clock: Clock) -> None:
    """Puts the clock around a model's linears and kernels."""
    model.kernels = TimedKernels(model.kernels, clock)  # type: ignore[assignment]
    for layer in model.layers:
        for name in ("qkv", "output", "gate_up", "down"):
            setattr(layer, name, clock.timed(PARTS[0], getattr(layer, name)))
    model._head = clock.timed(PARTS[3], model._head)


@torch.inference_mode()
def measure(model: FusedDecoder, pool: SlotPool, clock: Clock, sequences: int, context: int) -> dict[str, float]:
    """Median milliseconds of a step, by part and in all, for so many sequences of so much context each."""
    slots = [pool.allocate(context + 1) for _ in range(sequences)]
    segments = [Segment.chain(np.array([5]), one[context:], one[:context]) for one in slots]
    steps: list[dict[str, float]] = []
    for _ in range(WARM_UP + STEPS):
        clock.seconds.clear()
        started = time.perf_counter()
        hidden = model.forward(PackedBatch(segments, model.shape.device), pool)
        model.logits(hidden).argmax(-1).tolist()
        total = time.perf_counter() - started
        steps.append({**clock.seconds, PARTS[-1]: total - sum(clock.seconds.values()), "step": total})
    for one in slots:
        pool.free(one)
    return {part: 1000 * statistics.median(step[part] for step in steps[WARM_UP:]) for part in ("step", *PARTS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="as for `decoding-server serve`; a Llama-shaped one")
    folder = resolve(parser.parse_args().model).folder
    config = json.loads((folder / "config.json").read_text())
    model = load_model(folder, config, dtype=torch.float16, device=torch.device("cpu"))
    if not isinstance(model, FusedDecoder):
        raise SystemExit("error: only the fused decoder (Llama, Mistral, Qwen2, Qwen3) can be profiled")
    shape = model.shape
    pool = SlotPool(
        num_layers=shape.num_layers,
        num_slots=max(sequences * (context + 1) for sequences, context in BATCHES.values()),
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        dtype=shape.kv_dtype,
        device=shape.device,
    )
    clock = Clock()
    instrument(model, clock)
    print(f"| ms per step | {' | '.join(('step', *PARTS))} |\n| --- |{' ---: |' * (1 + len(PARTS))}")
    for name, (sequences, context) in BATCHES.items():
        found = measure(model, pool, clock, sequences, context)
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in found.values())} |")


if __name__ == "__main__":
    main()
