import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel

from models.loading import resolve
from models.token_bytes import BYTE_ALPHABET
from models.tokenizer import HuggingFaceTokenizer, load_tokenizer
from strategies.errors import InvalidRequest, ModelLoadError


@pytest.fixture(scope="module")
def default() -> HuggingFaceTokenizer:
    return load_tokenizer(resolve(None).folder)


@pytest.fixture(scope="module")
def known_bytes(default: HuggingFaceTokenizer) -> frozenset[int]:
    """Bytes that the default's vocabulary can spell: the model was published without some rare ones (0x04, 0xF1, ...),
    which its tokenizer drops."""
    known = frozenset(data[0] for i in range(default.vocab_size) if len(data := default.token_bytes(i)) == 1)
    assert len(known) == 256 - 21
    return known


def alphabet_tokenizer(**parts: Any) -> Tokenizer:
    """A byte-level tokenizer whose only tokens are the 256 bytes."""
    tokenizer = Tokenizer(BPE(vocab={c: i for i, c in enumerate(BYTE_ALPHABET)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer | None, **files: Any) -> Path:
    """Saves tokenizer.json and other files; a name's `__` stands for the dot. Text is written as it is."""
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    for name, contents in files.items():
        text = contents if isinstance(contents, str) else json.dumps(contents)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@example("e\u0301 \u1100\u1161 \ufb01 \u212b")
@example("<|im_start|>\x00\ufeff\u200d\U0001f469\u200d\U0001f467 \r\n\u2028 0x ١٢")
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(
    default: HuggingFaceTokenizer, known_bytes: frozenset[int], text: str
) -> None:
    expected = bytes(byte for byte in text.encode() if byte in known_bytes)
    ids = default.encode(text)
    assert b"".join(map(default.token_bytes, ids)) == expected
    assert default.decode(ids, skip_special_tokens=False) == expected.decode("utf-8", "replace")


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_normaliser_changes_the_text_and_nothing_else(text: str) -> None:
    tokenizer = HuggingFaceTokenizer(alphabet_tokenizer(normalizer=normalizers.NFC()), special_tokens={})
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == unicodedata.normalize("NFC", text).encode()


def test_every_byte_has_its_token() -> None:
    assert sorted(BYTE_ALPHABET.values()) == list(range(256))
    assert set(BYTE_ALPHABET) == set(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = HuggingFaceTokenizer(alphabet_tokenizer(), special_tokens={})
    for text in ["a b\n", "é", "🤖"]:
        for token, byte in zip(tokenizer.encode(text), text.encode(), strict=True):
            assert tokenizer.token_bytes(token) == bytes([byte])


def test_tokens_agree_with_the_librarys_own_decoding(default: HuggingFaceTokenizer) -> None:
    library = Tokenizer.from_file(str(resolve(None).folder / "tokenizer.json"))
    for token in range(0, default.vocab_size, 7):
        data = default.token_bytes(token)
        assert data.decode("utf-8", "replace") == library.decode([token], skip_special_tokens=False), token


def test_special_tokens_and_limits_of_the_default(default: HuggingFaceTokenizer) -> None:
    end = default.special_token_ids["<|im_end|>"]
    assert end == 2
    assert default.is_special(end)
    assert not default.is_special(default.encode("a")[0])
    assert end in default.eos_token_ids
    assert default.bos_token_id == 1
    assert default.token_bytes(end) == b"<|im_end|>"
    assert default.token_bytes(default.vocab_size) == default.token_bytes(-1) == default.token_bytes(1 << 70) == b""
    assert default.decode([end, *default.encode("x")]) == "x"
    assert default.decode([*default.encode("🤖")[:1]]) == "\ufffd"
    assert not default.strips_leading_space


def test_lone_surrogates_are_refused(default: HuggingFaceTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate U\\+D800 at character 1") as error:
        default.encode("a\ud800b")
    assert error.value.param is None


SPACES = decoders.Replace("▁", " ")
SENTENCEPIECE = {c: i for i, c in enumerate(["<unk>", "▁", "a", "b", "▁a", *(f"<0x{i:02X}>" for i in range(256))])}


@pytest.mark.parametrize(
    ("decoder", "strips"),
    [
        (decoders.Sequence([SPACES, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]), True),
        (decoders.Sequence([SPACES, decoders.ByteFallback(), decoders.Fuse()]), False),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]), True),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]), False),
        (decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.ByteFallback()]), False),
    ],
)  # fmt: skip
def test_sentencepiece_tokens_have_their_bytes(decoder: Any, strips: bool) -> None:
    model = BPE(vocab=SENTENCEPIECE, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoder
    tokenizer = HuggingFaceTokenizer(backend, special_tokens={"unk_token": "<unk>"})
    ids = tokenizer.encode("a bé")
    assert b"".join(map(tokenizer.token_bytes, ids)) == " a bé".encode()
    assert tokenizer.strips_leading_space == strips
    assert tokenizer.decode(ids) == backend.decode(ids) == ("a bé" if strips else " a bé")
    assert tokenizer.decode(ids[1:]) == backend.decode(ids[1:])


def test_a_decoder_without_bytes_is_refused() -> None:
    for decoder in (decoders.WordPiece(), None):
        backend = Tokenizer(WordLevel({"a": 0}, "a"))
        if decoder is not None:
            backend.decoder = decoder  # type: ignore[assignment]
        with pytest.raises(ModelLoadError, match="decoder"):
            HuggingFaceTokenizer(backend, special_tokens={})


def test_settings_of_the_folder_are_used(tmp_path: Path) -> None:
    tokenizer = alphabet_tokenizer()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    folder = write(
        tmp_path, tokenizer,
        tokenizer_config__json={
            "bos_token": {"content": "<bos>"},
            "added_tokens_decoder": {"258": {"content": "<tool>", "special": False}, "256": {"content": "<bos>"}},
        },
        special_tokens_map__json={"eos_token": "<eos>", "pad_token": "a"},
        generation_config__json={"eos_token_id": [257, 7]},
        config__json={"eos_token_id": 9},
    )  # fmt: skip
    loaded = load_tokenizer(folder)
    assert loaded.bos_token_id == 256
    assert loaded.eos_token_ids == {257, 7}
    assert loaded.encode("<tool>") == [258]
    assert loaded.token_bytes(258) == b"<tool>"
    assert loaded.vocab_size == 259
    assert (loaded.is_special(258), loaded.is_special(256), loaded.is_special(loaded.encode("a")[0])) == (
        False,
        True,
        True,
    )
    assert len(loaded.encode("bcdefgh")) == 7

    (tmp_path / "generation_config.json").unlink()
    assert load_tokenizer(folder).eos_token_ids == {9, 257}


def test_templates_are_found_in_order_of_precedence(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    folder = write(tmp_path, alphabet_tokenizer())
    with pytest.raises(InvalidRequest, match=r"no chat template.*--chat-template") as error:
        load_tokenizer(folder).render_chat(messages)
    assert error.value.param == "messages"
    write(tmp_path, None, chat_template__json={"chat_template": "old {{ messages[0].content }}"})
    assert load_tokenizer(folder).render_chat(messages) == "old hi"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named{{ bos_token }}"}]
    write(tmp_path, None, tokenizer_config__json={"chat_template": named, "bos_token": "!"})
    assert load_tokenizer(folder).render_chat(messages) == "named!"
    write(tmp_path, None, chat_template__jinja="file")
    assert load_tokenizer(folder).render_chat(messages) == "file"
    assert load_tokenizer(folder, chat_template="{{ 1 + 1 }}").render_chat(messages) == "2"
    write(tmp_path, None, mine__jinja="mine")
    assert load_tokenizer(folder, chat_template=str(tmp_path / "mine.jinja")).render_chat(messages) == "mine"


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, None, tokenizer__json='{"model": ')
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is no valid tokenizer"):
        load_tokenizer(folder)
    write(tmp_path, alphabet_tokenizer(), tokenizer_config__json="[1]")
    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json holds no JSON object"):
        load_tokenizer(folder)


def test_older_files_go_through_transformers(tmp_path: Path) -> None:
    vocabulary = {c: i for i, c in enumerate(BYTE_ALPHABET)} | {"ab": 256, "<|endoftext|>": 257}
    folder = write(
        tmp_path, None, vocab__json=vocabulary, merges__txt="#version: 0.2\na b\n",
        tokenizer_config__json={"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"},
        config__json={"model_type": "gpt2"},
    )  # fmt: skip
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("ab")[-1] == 256
    assert tokenizer.token_bytes(256) == b"ab"
    assert tokenizer.eos_token_ids == {257}
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json"):
        load_tokenizer(folder)
