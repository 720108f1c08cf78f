"""Which token ids would start with a given keyword or punctuation mark: one index per vocabulary, built once."""

import re
from weakref import WeakKeyDictionary

from strategies.text import Tokenizer

BLANKS = b" \t\r\n"
# A word, with the # or @ that may begin one; a bracket, comma or semicolon; or a run of operator characters.
FIRST_LEXEME = re.compile(rb"#?[A-Za-z_$\x80-\xff][A-Za-z0-9_$\x80-\xff]*|[()\[\]{},;#]|[-+*/%=<>!&|^~?:.@\\]+")


class LexemeIndex:
    """first lexeme -> ids of the tokens that begin with it after any blanks.

    A token that holds only a beginning of the lexeme (`el` of `elif`) is not listed: it may begin another (`else`).
    jumping: ids of tokens with text after a line end, which pass over the place where a line could begin.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Reads the whole vocabulary: about 0.1 s for 49,000 tokens, 0.5 s for 152,000."""
        self._ids: dict[bytes, list[int]] = {}
        jumping: list[int] = []
        special = frozenset(tokenizer.special_token_ids.values())
        for token in range(tokenizer.vocab_size):
            if token in special:
                continue
            data = tokenizer.token_bytes(token)
            match = FIRST_LEXEME.match(data.lstrip(BLANKS))
            if match is not None:
                self._ids.setdefault(match[0], []).append(token)
            if b"\n" in data and data[data.rindex(b"\n") :].strip(BLANKS):
                jumping.append(token)
        self.jumping = frozenset(jumping)

    def starting_with(self, lexeme: str) -> list[int]:
        """Ids whose first lexeme is exactly this keyword or punctuation mark."""
        return self._ids.get(lexeme.encode(), [])


_indexes: "WeakKeyDictionary[Tokenizer, LexemeIndex]" = WeakKeyDictionary()


def lexeme_index(tokenizer: Tokenizer) -> LexemeIndex:
    """The index of a tokenizer. The first call for one builds it; `GrammarRepetition.prepare` makes that call."""
    index = _indexes.get(tokenizer)
    if index is None:
        index = _indexes[tokenizer] = LexemeIndex(tokenizer)
    return index
