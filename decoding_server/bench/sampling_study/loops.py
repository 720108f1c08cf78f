"""Part `repetition`: loop-prone beginnings of programs, continued under each penalty.

TR-N and TR-S are those of what was generated; CCP is that of the whole program, as in the paper. Greedy, and seeded
at temperature 0.8: a prompt's noise is the same under every penalty.
"""

import time
from collections.abc import Hashable, Sequence
from functools import partial
from typing import cast

from decoding_server.bench import repetition
from decoding_server.bench.rows import Row
from decoding_server.bench.sampling_study.penalties import PENALTIES
from decoding_server.bench.sampling_study.subject import Subject
from decoding_server.bench.sampling_study.texts import Program
from decoding_server.bench.sampling_study.waves import Wave, cut
from strategies.runtime import Generation, SamplingParameters, StopConditions
from strategies.sampling.grammar_repetition.options import LanguageName

TEMPERATURES = (0.0, 0.8)
SEED = 20_250_510
FENCE = "\n```"
"""Ends a program too: chat models close a Markdown fence that nobody has opened, and go on in prose."""

LOOP_LINES, LOOP_COPIES = 16, 5


def waves(model: str, programs: Sequence[Program], size: int, max_tokens: int) -> list[Wave]:
    """All cells of a model, at most `size` programs at a time under one penalty."""
    return [
        Wave(
            f"{model}: {penalty}, temperature {temperature:g}",
            tuple(_key(model, penalty, temperature, max_tokens, program) for program in part),
            partial(measure, programs=part, penalty=penalty, temperature=temperature, max_tokens=max_tokens),
        )
        for temperature in TEMPERATURES
        for penalty in PENALTIES
        for part in cut(programs, size)
    ]


def _key(model: str, penalty: str, temperature: float, max_tokens: int, program: Program) -> str:
    return f"{model}|{penalty}|{temperature:g}|{max_tokens}|{program.number}"


async def measure(
    subject: Subject, programs: Sequence[Program], penalty: str, temperature: float, max_tokens: int
) -> list[Row]:
    """One row per program. `seconds` and `wave_tokens` are the whole batch's."""
    beginnings = [subject.beginning(program.text) for program in programs]
    generations = [
        Generation(
            subject.tokenizer.encode(beginning),
            SamplingParameters(temperature, PENALTIES[penalty](cast(LanguageName, program.language))),
            StopConditions(max_tokens=max_tokens, stop=(FENCE,)),
            seed=SEED + program.number,
        )
        for program, beginning in zip(programs, beginnings, strict=True)
    ]
    started = time.perf_counter()
    outputs = await subject.generate(generations)
    seconds = time.perf_counter() - started
    return [
        {
            "key": _key(subject.name, penalty, temperature, max_tokens, program),
            "model": subject.name,
            "penalty": penalty,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "language": program.language,
            "number": program.number,
            "text": output.text,
            "tokens": len(output.tokens),
            "ended": output.reason == "stop",
            "eos": repetition.end_share([output.tokens], subject.eos_token_ids) == 1,
            **scores(program.language, beginning, output.text),
            "seconds": seconds,
            "wave_tokens": sum(len(one.tokens) for one in outputs),
        }
        for program, beginning, output in zip(programs, beginnings, outputs, strict=True)
    ]


def scores(language: str, beginning: str, generated: str) -> dict[str, float | bool]:
    """The paper's metrics of one continuation, and the duplicate lines that the authors' script counts."""
    return {
        "tr_n": repetition.token_repetition(generated, language),
        "tr_s": repetition.statement_repetition(generated, language),
        "raw_lines": repetition.raw_line_repetition(generated),
        "compiles": repetition.compiles(beginning + generated, language),
    }


def looping(language: str, generated: str) -> bool:
    """Whether the text, which was cut off, goes round and round where it ends: its last whole lines are LOOP_COPIES
    adjacent copies, as the grammar sees them, of a pattern of at most LOOP_LINES lines of code."""
    whole = generated[: generated.rfind("\n") + 1]
    lines = [tuple(line) for line in repetition.symbols(whole, language)]
    return copies_at_end(lines, LOOP_LINES) >= LOOP_COPIES


def copies_at_end(items: Sequence[Hashable], longest: int) -> int:
    """How many adjacent copies of one block, of at most `longest` items, the sequence ends in; 1 for none."""
    most = 1
    for period in range(1, min(longest, len(items) // 2) + 1):
        copies, end = 1, len(items) - period
        while end >= period and items[end - period : end] == items[-period:]:
            copies, end = copies + 1, end - period
        most = max(most, copies)
    return most
