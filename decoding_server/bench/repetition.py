"""How repetitive generated code is: TR-N, TR-S, EGP and CCP of Dong et al. 2025 (section 4.2), as pure functions.

TR-N and TR-S are defined on G(x), the program's grammar symbols. The authors' script counts token and line texts
instead; their published numbers look like the script's, so both variants are here.
"""

import warnings
from collections.abc import Collection, Hashable, Sequence

from strategies.sampling.grammar_repetition.languages import LANGUAGES, parse
from strategies.sampling.grammar_repetition.leaves import COMMENT, leaves


def symbols(text: str, language: str) -> list[list[str]]:
    """G(x), statement by statement: the classes of the lexemes that begin in each line with code (comments left out).

    Raises KeyError for an unknown language, InvalidRequest when its grammar is not installed.
    """
    data = text.encode("utf-8", "replace")
    tree = parse(LANGUAGES[language], data)
    found, start = [], 0
    for line in data.splitlines(keepends=True):
        classes = [leaf.symbol for leaf in leaves(tree.walk(), start, start + len(line)) if leaf.symbol != COMMENT]
        if classes:
            found.append(classes)
        start += len(line)
    return found


def repeated_share(items: Sequence[Hashable]) -> float:
    """1 - distinct/total; 0 for none."""
    return 1 - len(set(items)) / len(items) if items else 0.0


def ngrams(items: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n items, in order."""
    return [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]


def token_repetition(text: str, language: str, n: int = 4) -> float:
    """TR-N: the share of n-grams of G(x) that repeat an earlier one."""
    return repeated_share(ngrams([symbol for line in symbols(text, language) for symbol in line], n))


def statement_repetition(text: str, language: str) -> float:
    """TR-S: the share of statements of G(x) that repeat an earlier one."""
    return repeated_share([tuple(line) for line in symbols(text, language)])


def raw_token_repetition(programs: Sequence[Sequence[str]], n: int = 4) -> float:
    """TR-N as the authors' script counts it: n-grams of token texts, duplicates and totals summed over the programs."""
    runs = [ngrams(tokens, n) for tokens in programs]
    total = sum(map(len, runs))
    return 1 - sum(len(set(run)) for run in runs) / total if total else 0.0


def raw_line_repetition(text: str) -> float:
    """TR-S as the authors' script means it: the share of lines, blank ones too, whose text repeats an earlier line."""
    return repeated_share(text.splitlines())


def end_share(outputs: Sequence[Sequence[int]], eos_token_ids: Collection[int]) -> float:
    """EGP: the share of outputs (token ids) that contain an end-of-sequence token; 0 for no outputs."""
    return sum(any(token in eos_token_ids for token in output) for output in outputs) / len(outputs) if outputs else 0.0


def compile_share(programs: Sequence[str], language: str) -> float:
    """CCP: the share of programs (prompt and output together) that compile; 0 for none."""
    return sum(compiles(program, language) for program in programs) / len(programs) if programs else 0.0


def compiles(program: str, language: str) -> bool:
    """Whether Python's compiler takes the program; for other languages, whether their grammar parses it faultlessly.

    Nothing is executed. A grammar is more lenient than a compiler: it knows no types and no names.
    """
    if language != "python":
        return not parse(LANGUAGES[language], program.encode("utf-8", "replace")).root_node.has_error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(program, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True
