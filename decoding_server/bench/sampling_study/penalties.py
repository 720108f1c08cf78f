"""The penalties that are compared, each as a request would ask for it."""

from collections.abc import Callable

from strategies.sampling.dry import DRY
from strategies.sampling.grammar_repetition.options import LanguageName
from strategies.sampling.grammar_repetition.transform import GrammarRepetition
from strategies.sampling.penalties import RepetitionPenalty
from strategies.sampling.transform import Transform

NONE = "none"

PENALTIES: dict[str, Callable[[LanguageName], tuple[Transform, ...]]] = {
    NONE: lambda language: (),
    "repetition_penalty 1.1": lambda language: (RepetitionPenalty(penalty=1.1),),
    "DRY": lambda language: (DRY(),),
    "grammar, released": lambda language: (GrammarRepetition(mode="released"),),
    "grammar, paper": lambda language: (GrammarRepetition(mode="paper", language=language),),
    "grammar, guarded": lambda language: (GrammarRepetition(mode="guarded", language=language),),
}
"""Name in the tables -> the transforms for a program in this language. All parameters not given are the defaults."""
