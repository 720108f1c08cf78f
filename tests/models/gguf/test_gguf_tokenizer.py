from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from models.gguf.configuration import end_of_sequence_ids
from models.gguf.reader import GGUFFile
from models.gguf.tokenizer import build_tokenizer, tokenizer_configuration
from models.tokenizer import HuggingFaceTokenizer
from strategies.errors import ModelLoadError

Write = Callable[..., Path]


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """The pre-tokenizer's pieces, in byte-level spelling."""
    assert tokenizer.pre_tokenizer is not None
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("smollm", ["a", "1", "2", "3", "4", "Ġb", "'s", "ĊĊ"]),
        ("qwen2", ["a", "1", "2", "3", "4", "Ġb", "'s", "ĊĊ"]),
        ("llama-bpe", ["a", "123", "4", "Ġb", "'s", "ĊĊ"]),
        ("gpt-2", ["a", "1234", "Ġb", "'s", "ĊĊ"]),
        ("default", ["a", "1234", "Ġb", "'s", "ĊĊ"]),
    ],
)
def test_each_family_splits_its_own_way(family: str, expected: list[str], write_gguf: Write) -> None:
    tokenizer = build_tokenizer(GGUFFile(write_gguf(tokenizer={"pre": family})))
    assert pieces(tokenizer, "a1234 b's\n\n") == expected


def test_qwen2_normalises_and_files_without_the_key_follow_their_architecture(write_gguf: Write) -> None:
    decomposed, composed = "e\u0301", "\u00e9"
    qwen = build_tokenizer(GGUFFile(write_gguf("q.gguf", "qwen2", tokenizer={"pre": None})))
    other = build_tokenizer(GGUFFile(write_gguf("l.gguf", "llama", tokenizer={"pre": None})))
    assert qwen.encode(decomposed).ids == qwen.encode(composed).ids
    assert other.encode(decomposed).ids != other.encode(composed).ids


def test_an_unknown_family_or_model_is_refused(write_gguf: Write) -> None:
    with pytest.raises(ModelLoadError, match=r"'tekken' is not supported \(supported: .*qwen2"):
        build_tokenizer(GGUFFile(write_gguf(tokenizer={"pre": "tekken"})))
    with pytest.raises(ModelLoadError, match="'t5' is not supported"):
        build_tokenizer(GGUFFile(write_gguf(tokenizer={"model": "t5"})))
    with pytest.raises(ModelLoadError, match="no merges"):
        build_tokenizer(GGUFFile(write_gguf(tokenizer={"merges": None})))
    with pytest.raises(ModelLoadError, match="corrupt"):
        build_tokenizer(GGUFFile(write_gguf(tokenizer={"merges": ["Q Z"]})))
    with pytest.raises(ModelLoadError, match="beyond the vocabulary"):
        build_tokenizer(GGUFFile(write_gguf(tokenizer={"bos_token_id": 99999, "add_bos_token": True})))


def test_token_types_become_special_added_and_padding(
    write_gguf: Write, byte_level_vocabulary: tuple[list[str], list[str]]
) -> None:
    tokens, _ = byte_level_vocabulary
    extended = [*tokens, "<tool>", "<|eot_id|>", "[PAD0]", "[PAD1]"]
    types = [3] * 3 + [1] * (len(tokens) - 3) + [4, 3, 5, 5]
    file = GGUFFile(write_gguf(tokenizer={"tokens": extended, "token_type": types}))
    tokenizer = build_tokenizer(file)
    tool, end = len(tokens), len(tokens) + 1

    assert tokenizer.encode("<tool>cat<|eot_id|>").ids[:: len(tokenizer.encode("cat").ids) + 1] == [tool, end]
    added = tokenizer.get_added_tokens_decoder()
    assert (added[tool].special, added[end].special, added[0].special) == (False, True, True)
    assert tokenizer.get_vocab_size() == len(tokens) + 2
    assert end_of_sequence_ids(file.metadata) == [2, 0, end]


def test_begin_and_end_tokens_follow_the_file(write_gguf: Write) -> None:
    plain = build_tokenizer(GGUFFile(write_gguf()))
    begun = build_tokenizer(GGUFFile(write_gguf(tokenizer={"add_bos_token": True})))
    ended = build_tokenizer(GGUFFile(write_gguf(tokenizer={"add_eos_token": True})))
    implied = build_tokenizer(GGUFFile(write_gguf(tokenizer={"pre": "llama-bpe"})))
    ids = plain.encode("the cat").ids
    assert begun.encode("the cat").ids == [1, *ids]
    assert ended.encode("the cat").ids == [*ids, 2]
    assert implied.encode("the cat").ids[0] == 1
    assert begun.encode("the cat", add_special_tokens=False).ids == ids


def test_the_configuration_names_the_special_tokens(write_gguf: Write) -> None:
    config = tokenizer_configuration(GGUFFile(write_gguf()), 128)
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<|im_start|>", "<|im_end|>", None)
    assert config["model_max_length"] == 128


@pytest.fixture
def sentencepiece_like(write_gguf: Write) -> HuggingFaceTokenizer:
    """A SentencePiece vocabulary: control, bytes, then pieces whose score falls with their id."""
    pieces = ["▁", "t", "h", "e", "c", "a", "▁t", "he", "▁the", "▁c", "at", "▁cat", "ca"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    scores = [0.0] * 259 + [float(-i) for i in range(len(pieces))]
    entries = {
        "model": "llama", "pre": None, "merges": None, "tokens": tokens, "token_type": types, "scores": scores,
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "padding_token_id": None,
    }  # fmt: skip
    built = build_tokenizer(GGUFFile(write_gguf(tokenizer=entries)))
    return HuggingFaceTokenizer(built, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes(sentencepiece_like: HuggingFaceTokenizer) -> None:
    base = 259
    encode = sentencepiece_like.encode
    assert encode("the cat") == [1, base + 8, base + 11]
    assert encode("acat") == [1, base, base + 5, base + 4, base + 10]  # "at" has the better score than "ca" before it
    assert encode("é", add_special_tokens=False) == [base, 3 + 0xC3, 3 + 0xA9]


def test_sentencepiece_text_survives_a_round_trip(sentencepiece_like: HuggingFaceTokenizer) -> None:
    assert sentencepiece_like.strips_leading_space
    for text in ["the cat", " the  cat ", "é你🤖", "\n\t", ""]:
        ids = sentencepiece_like.encode(text)
        assert ids[0] == 1
        assert sentencepiece_like.decode(ids) == text
        joined = b"".join(sentencepiece_like.token_bytes(i) for i in ids[1:])
        assert joined == (" " + text if text else "").encode()
