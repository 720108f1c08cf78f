"""Builds the tokenizer of a GGUF file (tokenizer.json, tokenizer_config.json) from its vocabulary and merges.

A GGUF file names its text splitting (`tokenizer.ggml.pre`) rather than describing it, so each name that is known to be
reproduced exactly is listed here, and any other is refused.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from models.gguf.reader import GGUFFile
from strategies.errors import ModelLoadError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Splitting expressions as the model families publish them in their tokenizer.json; they differ in runs of digits.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

SPLITTING = {
    "gpt-2": "gpt-2",
    "default": "gpt-2",
    "smollm": "smollm",
    "qwen2": "qwen2",
    "llama-bpe": "llama-bpe",
    "llama-v3": "llama-bpe",
    "llama3": "llama-bpe",
}


def build_tokenizer(file: GGUFFile) -> Tokenizer:
    """The tokenizer, ready to be saved as tokenizer.json.

    Raises ModelLoadError when the file has no vocabulary or one whose splitting rules are not known exactly.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    tokens, types = _vocabulary(file)
    if kind == "gpt2":
        tokenizer = _byte_level(file, tokens, types)
    elif kind == "llama":
        tokenizer = _sentencepiece(file, tokens, types)
    else:
        raise ModelLoadError(
            f"{file.path}: tokenizer {kind!r} is not supported (supported: gpt2, llama); "
            "use the model's safetensors folder or hub id instead"
        )
    for i in np.flatnonzero((types == CONTROL) | (types == USER_DEFINED)).tolist():
        special = bool(types[i] == CONTROL)
        token = AddedToken(tokens[i], normalized=False, special=special)
        if special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([token])
    _add_begin_and_end(file, tokenizer, tokens)
    return tokenizer


def tokenizer_configuration(file: GGUFFile, max_length: int) -> dict[str, Any]:
    """The contents of tokenizer_config.json: names of the special tokens and the chat template."""
    tokens: list[str] = file.metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": file.metadata.get("tokenizer.chat_template"),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = _token_id(file, key, tokens)
        config[f"{name}_token"] = None if index is None else tokens[index]
    return config


def _vocabulary(file: GGUFFile) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Token texts and token types, by id."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelLoadError(f"{file.path}: the GGUF file holds no vocabulary; use a file that includes its tokenizer")
    types = file.metadata.get("tokenizer.ggml.token_type")
    if types is None:
        types = np.full(len(tokens), NORMAL)
    if len(types) != len(tokens):
        raise file.corrupt(f"{len(tokens)} tokens with {len(types)} types")
    return tokens, np.asarray(types)


def _byte_level(file: GGUFFile, tokens: list[str], types: np.ndarray[Any, Any]) -> Tokenizer:
    """GPT-2's byte-level BPE with the splitting that the file names."""
    family = _family(file.metadata)
    if family not in SPLITTING:
        raise ModelLoadError(
            f"{file.path}: pre-tokenizer {family!r} is not supported (supported: {', '.join(SPLITTING)}); "
            "use the model's safetensors folder or hub id instead"
        )
    family = SPLITTING[family]
    merges = [tuple(merge.split(" ", 1)) for merge in file.metadata.get("tokenizer.ggml.merges", [])]
    if not merges:
        raise ModelLoadError(f"{file.path}: the GGUF file holds no merges; use a file that includes its tokenizer")
    merged = {part for merge in merges for part in merge} if (types == UNUSED).any() else set()
    # Unused entries only pad the vocabulary to the size of the embedding; they stand for no text.
    vocabulary = {t: i for i, t in enumerate(tokens) if types[i] != UNUSED or t in merged}
    tokenizer = Tokenizer(_bpe(file, vocabulary, merges, ignore_merges=family == "llama-bpe"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family in ("gpt-2", "smollm"))
    if family == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    elif family == "gpt-2":
        tokenizer.pre_tokenizer = byte_level
    else:
        expression = Regex(QWEN2_SPLIT if family == "qwen2" else LLAMA3_SPLIT)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(expression, "isolated"), byte_level])
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _family(metadata: Mapping[str, Any]) -> str:
    """The name of the splitting; files older than the key leave it out."""
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:
        return "qwen2" if metadata.get("general.architecture") in ("qwen2", "qwen3") else "default"
    return str(name)


def _sentencepiece(file: GGUFFile, tokens: list[str], types: np.ndarray[Any, Any]) -> Tokenizer:
    """SentencePiece's BPE with byte fallback. The file has scores instead of merges: a piece may be merged from any two
    pieces that it splits into, the best score first."""
    scores = file.metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise file.corrupt("the scores of the vocabulary are missing")
    unknown = _token_id(file, "unknown", tokens)
    if unknown is None:
        raise file.corrupt("the unknown token is missing")
    for i in np.flatnonzero(types == USER_DEFINED).tolist():
        tokens[i] = tokens[i].replace("▁", " ")  # added tokens are matched in the text as it is written
    vocabulary: dict[str, int] = {}
    for i, token in enumerate(tokens):
        vocabulary.setdefault(token, i)
    pieces = {t: i for t, i in vocabulary.items() if types[i] == NORMAL}
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, i in pieces.items():
        for cut in range(1, len(piece)):
            left, right = pieces.get(piece[:cut]), pieces.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-float(scores[i]), left, right, piece[:cut], piece[cut:]))
    merges = [(left, right) for *_, left, right in sorted(ranked)]
    model = _bpe(file, vocabulary, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefixed = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefixed else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return tokenizer


def _bpe(file: GGUFFile, vocabulary: dict[str, int], merges: list[Any], **options: Any) -> BPE:
    try:
        return BPE(vocab=vocabulary, merges=merges, **options)
    except Exception as fault:  # the library raises plain Exception, e.g. for a merge whose result is no token
        raise file.corrupt(f"tokenizer: {fault}") from fault


def _add_begin_and_end(file: GGUFFile, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Makes encoding add beginning- and end-of-sequence tokens where the file asks for it, or its kind implies it."""
    implied = file.metadata.get("tokenizer.ggml.model") == "llama" or (
        SPLITTING.get(_family(file.metadata)) == "llama-bpe"
    )
    begin = _token_id(file, "bos", tokens) if file.metadata.get("tokenizer.ggml.add_bos_token", implied) else None
    end = _token_id(file, "eos", tokens) if file.metadata.get("tokenizer.ggml.add_eos_token", False) else None
    before = [] if begin is None else [tokens[begin]]
    after = [] if end is None else [tokens[end]]
    if not before and not after:
        return
    used = {tokens[i]: i for i in (begin, end) if i is not None}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{t}:1" for t in before), "$B:1", *(f"{t}:1" for t in after)],
        special_tokens=list(used.items()),
    )


def _token_id(file: GGUFFile, key: str, tokens: list[str]) -> int | None:
    index = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
    if index is not None and not 0 <= int(index) < len(tokens):
        raise file.corrupt(f"the {key} token {index} is beyond the vocabulary")
    return None if index is None else int(index)
