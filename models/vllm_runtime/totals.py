"""Counters that vLLM reports with every step, for health and metrics."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Totals:
    """steps since the start, and those of `RuntimeStatus`; kv_usage: share of the KV cache in use, 0..1."""

    steps: int = 0
    kv_usage: float = 0.0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    iteration_tokens: int = 0


class StatLogger:
    """What vLLM calls a stat logger; made by a factory, (configuration, number of the engine)."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def record(
        self,
        scheduler_stats: Any | None,
        iteration_stats: Any | None,
        mm_cache_stats: Any | None = None,
        engine_idx: int = 0,
    ) -> None:
        totals = self._totals
        totals.steps += 1
        if scheduler_stats is not None:
            totals.kv_usage = scheduler_stats.kv_cache_usage
            cache = scheduler_stats.prefix_cache_stats
            if cache is not None:
                totals.prefix_cache_queries += cache.queries
                totals.prefix_cache_hits += cache.hits
        if iteration_stats is not None:
            totals.prompt_tokens += iteration_stats.num_prompt_tokens
            totals.generation_tokens += iteration_stats.num_generation_tokens
            totals.iteration_tokens += iteration_stats.num_prompt_tokens + iteration_stats.num_generation_tokens
            totals.preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        return

    def log(self) -> None:
        return

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        return
