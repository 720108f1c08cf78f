"""`python -m decoding_server.bench.speculation`: runs what is missing of the grid and writes the report."""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from decoding_server.bench import machine, workload_file
from decoding_server.bench.speculation import documents
from decoding_server.bench.speculation.datasets import datasets, encoded, spread
from decoding_server.bench.speculation.grid import BUDGETS, COUPLED, METHODS, PLAIN, parsed, shapes
from decoding_server.bench.speculation.measure import draft_forwards, generations, memory_bound_speedup, run
from decoding_server.bench.speculation.peers import TransformersPeer
from decoding_server.bench.speculation.report import THEORY, markdown, write_plot
from decoding_server.bench.speculation.rows import Cell, Row, RowFile
from decoding_server.bench.speculation.theory import TheoryCheck
from decoding_server.openmp import configure_openmp
from models.loading import resolve
from models.torch_runtime.load import EngineOptions, load_runtime
from models.torch_runtime.runtime import TorchRuntime

DOCS = Path("docs/strategies")
Prompts = dict[str, list[list[int]]]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="decoding_server.bench.speculation", description="Speculation by method and budget against plain decoding."
    )
    add = parser.add_argument
    add("--model", help="the target, as for `decoding-server serve`; absent: the embedded one")
    add("--draft-model", help="a model that drafts, given likewise")
    add("--draft-dtype", default="auto")
    add("--early-exit-layers", type=int, help="the target's first layers draft; used if there is no draft model")
    add("--dtype", default="auto")
    add("--device", default="auto")
    add("--kv-cache-memory", type=int, help="bytes")
    add("--humaneval", type=Path, help="HumanEval.jsonl or .jsonl.gz")
    add("--gsm8k", type=Path, help="a .jsonl file with a field `question`")
    add("--datasets", nargs="+", help="of humaneval, gsm8k, copying; absent: all that are there")
    add("--methods", nargs="+", default=list(METHODS), choices=[*METHODS, *COUPLED])
    add("--budgets", nargs="+", type=int, default=list(BUDGETS))
    add("--shapes", type=int, default=1, help="shapes of each method and budget, at most (default %(default)s)")
    add("--concurrency", nargs="+", type=int, default=[1, 4, 8])
    add("--temperature", nargs="+", type=float, default=[0.0, 0.8])
    add("--prompts", type=int, default=12, help="of each set (default %(default)s)")
    add("--max-tokens", type=int, default=96)
    add("--repeats", type=int, default=1)
    add("--plain-every", type=int, default=4, help="cells between two of plain decoding (default %(default)s)")
    add("--theory", action="store_true", help="also compare block efficiency with what theory says")
    add("--peers", action="store_true", help="also transformers' assisted generation and prompt lookup")
    add("--peer-dtype", default="float32", choices=["float32", "bfloat16"])
    add("--output", type=Path, default=Path("build/speculation"), help="folder of the rows; a run goes on there")
    add("--write-docs", action="store_true", help=f"write this target's part of {DOCS}/{documents.PAGE}")
    return workload_file.parsed(parser, given)


class Benchmark:
    """One run over one target."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        options.output.mkdir(parents=True, exist_ok=True)
        self.file = RowFile(options.output / "rows.jsonl")
        self.target = resolve(options.model)
        self.draft = None if options.draft_model is None else resolve(options.draft_model)

    def load(self) -> TorchRuntime:
        options = self.options
        return load_runtime(
            self.target,
            EngineOptions(
                dtype=options.dtype,
                device=options.device,
                max_num_seqs=max(options.concurrency),
                kv_cache_memory=options.kv_cache_memory,
                draft_models=[] if self.draft is None else [self.draft],
                draft_dtype=options.draft_dtype,
                early_exit_layers=options.early_exit_layers,
            ),
        )

    def prompts(self, runtime: TorchRuntime) -> Prompts:
        """Token ids by data set, cut to what the model has room for."""
        options = self.options
        sets = datasets(options.humaneval, options.gsm8k)
        names = options.datasets or list(sets)
        missing = [name for name in names if name not in sets]
        if missing:
            raise SystemExit(f"error: no file was given for {', '.join(missing)}")
        room = runtime.info.max_model_len - options.max_tokens
        return {
            name: [tokens[:room] for tokens in encoded(runtime.tokenizer, spread(sets[name], options.prompts))]
            for name in names
        }

    def blocks(self, prompts: Prompts, drafter: str | None) -> Iterator[list[Cell]]:
        """Cells that are compared with the same plain decoding, in an order that changes with the repeat."""
        options = self.options
        for repeat in range(options.repeats):
            for dataset in prompts:
                for temperature in options.temperature:
                    for concurrency in options.concurrency:
                        cells = [
                            Cell(dataset, temperature, concurrency, repeat, method, budget, json.dumps(shape))
                            for budget in options.budgets
                            for method in options.methods
                            if drafter is not None or method.split()[0] in ("ngram", "auto")
                            for shape in shapes(method, budget, drafter if method != "auto" else None, options.shapes)
                        ]
                        yield cells if repeat % 2 == 0 else cells[::-1]

    def run(self) -> None:
        options, runtime = self.options, self.load()
        try:
            drafters = runtime.engine.speculator.drafters
            drafter = next(iter(drafters), None)
            info = runtime.info
            ratio = 0.0 if drafter is None else drafters[drafter].flops(1, 0) / info.flops(1, 0)
            prompts = self.prompts(runtime)
            self.describe(info.name, drafter, ratio)
            blocks = list(self.blocks(prompts, drafter))
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            with Progress(*columns) as progress:
                task = progress.add_task("", total=sum(map(len, blocks)))
                for cells in blocks:
                    self.block(runtime, cells, prompts, ratio, lambda text: progress.update(task, description=text))
                    progress.advance(task, len(cells))
                if options.theory:
                    self.theory(runtime, prompts, drafter)
        finally:
            runtime.close()
        if options.peers:
            self.peers(prompts)

    def block(self, runtime: TorchRuntime, cells: Sequence[Cell], prompts: Prompts, ratio: float, report: Any) -> None:
        """Measures what is missing, between cells of plain decoding."""
        missing = [cell for cell in cells if not self.file.has(cell)]
        if not missing:
            return
        first = missing[0]
        plain = Cell(first.dataset, first.temperature, first.concurrency, first.repeat, PLAIN, 0, "null")
        chats = prompts[first.dataset]
        self.warm(runtime, chats)
        for place, cell in enumerate(missing):
            if place % self.options.plain_every == 0:
                self.cell(runtime, plain, chats, ratio)
            report(f"{cell.dataset}, T = {cell.temperature:g}, {cell.concurrency} at a time: {cell.shape}")
            self.cell(runtime, cell, chats, ratio)
        self.cell(runtime, plain, chats, ratio)

    def warm(self, runtime: TorchRuntime, chats: Sequence[Sequence[int]]) -> None:
        """The target computes the prompts, and so does the draft."""
        speculation = parsed({"type": "chain", "length": 1}) if runtime.engine.speculator.drafters else None
        run(runtime, generations(chats, 0.0, 3, speculation), self.options.concurrency[-1])

    def cell(self, runtime: TorchRuntime, cell: Cell, chats: Sequence[Sequence[int]], ratio: float) -> None:
        body = json.loads(cell.shape)
        speculation = None if body is None else parsed(body)
        requests = generations(chats, cell.temperature, self.options.max_tokens, speculation)
        counts = run(runtime, requests, cell.concurrency)
        forwards = draft_forwards(counts, speculation)
        values: dict[str, Any] = {
            "tokens_per_second": counts.tokens_per_second,
            "block_efficiency": counts.block_efficiency,
            "mbsu": memory_bound_speedup(counts, forwards, ratio),
            "acceptance_by_level": [n / counts.rounds for n in counts.accepted_by_level] if counts.rounds else [],
            **asdict(counts),
            "draft_forwards": forwards,
        }
        self.file.append(Row(cell, values, time.time()))

    def theory(self, runtime: TorchRuntime, prompts: Prompts, drafter: str | None) -> None:
        """One more run for each method, at the smallest budget and the largest temperature, one sequence at a time."""
        options = self.options
        for dataset, chats in prompts.items():
            for method in options.methods:
                if method not in METHODS or method == "auto" or (drafter is None and method != "ngram"):
                    continue
                body = shapes(method, min(options.budgets), drafter, 1)[0]
                cell = Cell(dataset, max(options.temperature), 1, 0, THEORY + method, 0, json.dumps(body))
                if self.file.has(cell) or not cell.temperature:
                    continue
                check = TheoryCheck(method)
                runtime.engine.on_round = check
                run(runtime, generations(chats, cell.temperature, options.max_tokens, parsed(body)), 1)
                runtime.engine.on_round = None
                values = {"tokens": check.tokens.summary(), "first_level": check.first_level.summary()}
                self.file.append(Row(cell, values, time.time()))

    def peers(self, prompts: Prompts) -> None:
        """After our engine has given its memory back."""
        options = self.options
        peer = TransformersPeer(
            self.target.folder, None if self.draft is None else self.draft.folder, options.peer_dtype
        )
        for dataset, chats in prompts.items():
            for temperature in options.temperature:
                for mode in peer.modes:
                    cell = Cell(dataset, temperature, 1, 0, mode, 0, "null")
                    if not self.file.has(cell):
                        tokens, seconds = peer.run(mode, chats, temperature, options.max_tokens)
                        values = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
                        self.file.append(Row(cell, values, time.time()))

    def describe(self, target: str, drafter: str | None, ratio: float) -> None:
        setting = {
            "target": target,
            "drafter": drafter or "none but look-up",
            "ratio": ratio,
            "prompts": self.options.prompts,
            "max_tokens": self.options.max_tokens,
            "repeats": self.options.repeats,
            "machine": machine.describe(),
            "commit": machine.commit(),
            "date": time.strftime("%Y-%m-%d"),
        }
        (self.options.output / "setting.json").write_text(json.dumps(setting, indent=1))

    def report(self) -> str:
        setting = json.loads((self.options.output / "setting.json").read_text())
        plot = self.options.output / "speculation.svg"
        text = markdown(self.file.rows, setting, plot.name if write_plot(self.file.rows, plot) else None)
        (self.options.output / "report.md").write_text(text + "\n")
        if self.options.write_docs:
            documents.write(DOCS, self.file.rows, setting)
        return text


def main(given: Sequence[str] | None = None) -> int:
    configure_openmp()
    benchmark = Benchmark(arguments(given))
    benchmark.run()
    print(benchmark.report())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
