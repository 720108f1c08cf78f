"""Fill-in-the-middle: a prompt and a `suffix` in the order and between the markers that the model was trained with."""

from typing import NamedTuple

from decoding_server.errors import InvalidField
from strategies.text import Tokenizer


class Markers(NamedTuple):
    """Special tokens around the parts. suffix_first: the suffix precedes the prefix (Mistral's Codestral)."""

    prefix: str
    suffix: str
    middle: str
    suffix_first: bool = False


KNOWN = (
    Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, Granite, CodeGemma
    Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    Markers("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Markers("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    Markers("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    Markers("[PREFIX]", "[SUFFIX]", "", suffix_first=True),  # Codestral
)


def fill_in_middle(tokenizer: Tokenizer, prompt: str, suffix: str) -> list[int]:
    """Token ids that ask for the text between prompt and suffix. Raises InvalidField where the model has no markers."""
    special = tokenizer.special_token_ids
    for markers in KNOWN:
        needed = [name for name in (markers.prefix, markers.suffix, markers.middle) if name]
        if all(name in special for name in needed):
            break
    else:
        raise InvalidField(
            "'suffix' is not supported by this model: its tokenizer has no fill-in-the-middle tokens.",
            "suffix",
            "unsupported_parameter",
        )
    before = [special[markers.prefix], *tokenizer.encode(prompt, add_special_tokens=False)]
    after = [special[markers.suffix], *tokenizer.encode(suffix, add_special_tokens=False)]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if markers.suffix_first:
        return [*begin, *after, *before]
    return [*begin, *before, *after, special[markers.middle]]
