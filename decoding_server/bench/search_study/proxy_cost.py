"""`python -m decoding_server.bench.search_study.proxy_cost`: a search inside the server against the same one outside.

Inside: branches share their prefixes and one process. Outside: every continuation is an HTTP request to our own server,
started with --no-prefix-cache, as a proxy in front of a server that keeps nothing would have it. Both run in turns.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
from rich.console import Console

from decoding_server.bench import workload_file
from decoding_server.openmp import configure_openmp

QUESTIONS_SEED = 1


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m decoding_server.bench.search_study.proxy_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--output", type=Path, required=True, help="folder of rows and the server's log")
    result.add_argument("--questions", type=Path, required=True)
    result.add_argument("--model", help="what `decoding-server serve` takes (default: the embedded model)")
    result.add_argument("--count", type=int, default=4, help="questions (default %(default)s)")
    result.add_argument("--max-tokens", type=int, default=200, help="of one answer (default %(default)s)")
    result.add_argument("--search", action="append", help="JSON of a search; may be repeated")
    return result


DEFAULT = ('{"type": "majority", "samples": 8}', '{"type": "phi", "beams": 2, "rollouts": 2}')


async def compare(arguments: argparse.Namespace, console: Console) -> list[dict[str, object]]:
    """Rows: per search and question, seconds and computed tokens inside and outside."""
    from decoding_server.bench.answer_grading import AnswerGrader
    from decoding_server.bench.process import ProcessTree, free_port
    from decoding_server.bench.search_study.asking import ask
    from decoding_server.bench.search_study.contenders import Contender
    from decoding_server.bench.search_study.proxied import ProxiedRuntime
    from decoding_server.bench.search_study.questions import load
    from models.loading import resolve
    from models.torch_runtime.load import EngineOptions, load_runtime

    port = free_port()
    model = [] if arguments.model is None else [arguments.model]
    flags = ["--host", "127.0.0.1", "--port", str(port), "--no-prefix-cache", "--max-model-len", "2048"]
    command = [sys.executable, "-m", "decoding_server", "serve", *model, *flags]
    server = ProcessTree(command, os.environ, arguments.output / "server.log")
    runtime = load_runtime(resolve(arguments.model), EngineOptions(max_model_len=2048))
    rows: list[dict[str, object]] = []
    try:
        await healthy(f"http://127.0.0.1:{port}/health")
        proxied = ProxiedRuntime(f"http://127.0.0.1:{port}", runtime)
        with AnswerGrader() as grader:
            for text in arguments.search or DEFAULT:
                search = json.loads(text)
                contender = Contender(search["type"], 0.7, search)
                for question in load(arguments.questions, arguments.count):
                    row: dict[str, object] = {"search": search, "question": question.number}
                    for name, where in (("inside", runtime), ("outside", proxied)):
                        before = proxied.requests
                        found = await ask(
                            where, {}, grader, contender, question, seed=QUESTIONS_SEED, max_tokens=arguments.max_tokens
                        )
                        row[name] = {key: found[key] for key in ("seconds", "target_tokens", "output_tokens", "flops")}
                        row["requests"] = proxied.requests - before
                    rows.append(row)
                    with (arguments.output / "proxy.jsonl").open("a", encoding="utf-8") as sink:
                        sink.write(json.dumps(row) + "\n")
                    console.print(json.dumps(row), highlight=False, markup=False, soft_wrap=True)
        proxied.close()
    finally:
        runtime.close()
        await asyncio.to_thread(server.stop)
    return rows


async def healthy(url: str, seconds: float = 180.0) -> None:
    """Raises RuntimeError when the server is not there in time."""
    async with httpx.AsyncClient() as client:
        for _ in range(int(seconds / 0.5)):
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.5)
    raise RuntimeError("the server did not become healthy; see server.log")


def main(given: Sequence[str] | None = None) -> int:
    arguments = workload_file.parsed(parser(), given)
    configure_openmp()
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    rows = asyncio.run(compare(arguments, console))
    for name in dict.fromkeys(json.dumps(row["search"]) for row in rows):
        own = [row for row in rows if json.dumps(row["search"]) == name]
        for unit in ("seconds", "target_tokens"):
            inside, outside = ([row[side][unit] for row in own] for side in ("inside", "outside"))  # type: ignore[index]
            ratio = statistics.median(b / a for a, b in zip(inside, outside, strict=True))
            console.print(
                f"{name}: {unit} inside {statistics.median(inside):.1f}, outside {statistics.median(outside):.1f}, "
                f"median ratio {ratio:.2f}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
