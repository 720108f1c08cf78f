"""The tokenizer of a model folder, on the `tokenizers` library: implements `strategies.text.Tokenizer`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from models.token_bytes import TokenDecoder
from strategies.errors import InvalidRequest, ModelLoadError

if TYPE_CHECKING:
    from models.chat_template import ChatTemplate

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ADDITIONAL_TOKENS = ("additional_special_tokens", "extra_special_tokens")


def load_tokenizer(folder: Path, *, chat_template: str | None = None) -> "HuggingFaceTokenizer":
    """Reads the tokenizer files of a model folder.

    chat_template: a template or the path of one, instead of the model's. Without a tokenizer.json, transformers
    converts the older files (slowly). Raises ModelLoadError.
    """
    settings = _read_object(folder / "tokenizer_config.json")
    template = _template_text(folder, settings, chat_template)
    named = {**_read_object(folder / "special_tokens_map.json"), **settings}
    config = _read_object(folder / "config.json")
    generation = _read_object(folder / "generation_config.json")
    eos = generation.get("eos_token_id")
    if eos is None:
        eos = config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    tokenizer = _backend(folder)
    _add_tokens(tokenizer, settings, named)
    return HuggingFaceTokenizer(
        tokenizer,
        special_tokens={name: text for name in NAMED_TOKENS if (text := _text(named.get(name))) is not None},
        additional=[text for key in ADDITIONAL_TOKENS for text in _texts(named.get(key))],
        eos_token_ids=[int(i) for i in ids],
        chat_template=template,
    )


class HuggingFaceTokenizer:
    """A `strategies.text.Tokenizer`.

    special_tokens: `bos_token`, `eos_token`, ... -> text. eos_token_ids: ids that end a sequence; the id of `eos_token`
    is one of them in any case. chat_template: its text, or None. Raises ModelLoadError when the tokenizer's decoder
    gives tokens no bytes of their own.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        additional: Sequence[str] = (),
        eos_token_ids: Sequence[int] = (),
        chat_template: str | None = None,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        decoder = tokenizer.decoder
        self._decoder = TokenDecoder(None if decoder is None else json.loads(decoder.__getstate__()))
        added = tokenizer.get_added_tokens_decoder()
        self._vocab_size = max(tokenizer.get_vocab_size(with_added_tokens=True), 1 + max(added, default=-1))
        self._special = {token.content: i for i, token in added.items() if token.special}
        for text in (*special_tokens.values(), *additional):
            index = tokenizer.token_to_id(text)
            if index is not None:
                self._special[text] = index
        self._special_ids = frozenset(self._special.values())
        self._bytes: dict[int, bytes] = {i: token.content.encode() for i, token in added.items()}
        self._bytes |= {i: text.encode() for text, i in self._special.items()}
        self._added_ids = frozenset(self._bytes)
        self._bos = self._special.get(special_tokens.get("bos_token", ""))
        eos = self._special.get(special_tokens.get("eos_token", ""))
        self._eos = frozenset([*eos_token_ids, *([] if eos is None else [eos])])
        self._special_tokens = dict(special_tokens)
        self._template_text = chat_template
        self._template: ChatTemplate | None = None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that has text; the model's logits may be padded beyond it."""
        return self._vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._eos

    @property
    def bos_token_id(self) -> int | None:
        return self._bos

    @property
    def eos_token(self) -> str | None:
        return self._special_tokens.get("eos_token")

    @property
    def special_token_ids(self) -> Mapping[str, int]:
        return self._special

    @property
    def strips_leading_space(self) -> bool:
        return self._decoder.strips_leading_space

    @property
    def chat_template(self) -> str | None:
        """The text of the chat template in use, or None."""
        return self._template_text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Special tokens written in it become their ids; bytes that the vocabulary can't spell are
        dropped, as everywhere the tokenizer is used (SmolLM2's was published without 21 rare ones).

        add_special_tokens: adds what the tokenizer adds around a text (often a beginning-of-sequence token), whether or
        not the text already has it; rendered chat templates have theirs, so encode those with False.
        Raises InvalidRequest for a text with lone surrogates, which is no Unicode text and has no UTF-8 form.
        """
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError as fault:
            raise _surrogates(text, fault) from fault

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids: their bytes joined, with U+FFFD for what is no UTF-8; as streaming releases it."""
        kept = [i for i in ids if not (skip_special_tokens and i in self._special_ids)]
        data = b"".join(map(self.token_bytes, kept))
        if self.strips_leading_space and kept and kept[0] not in self._added_ids:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes the token stands for; an added or special token's are its text; empty beyond the vocabulary."""
        known = self._bytes.get(token)
        if known is None:
            text = self._tokenizer.id_to_token(token) if 0 <= token < self._vocab_size else None
            if text is None:
                return b""
            known = self._bytes[token] = self._decoder.bytes_of(text)
        return known

    def table(self) -> list[bytes]:
        """Bytes of every token, by id."""
        return [self.token_bytes(token) for token in range(self._vocab_size)]

    def is_special(self, token: int) -> bool:
        return token in self._special_ids

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation. variables: passed to the template (`tools`, `documents`, ...). template:
        used instead of the model's.

        Raises InvalidRequest(param="messages") with the template's own message, or when there is no template.
        """
        if template is not None:
            from models.chat_template import ChatTemplate

            once = ChatTemplate(template, self._special_tokens)
            return once.render(messages, add_generation_prompt=add_generation_prompt, **variables)
        if self._template_text is None:
            raise InvalidRequest(
                "the model has no chat template; start the server with --chat-template, or use /v1/completions",
                param="messages",
            )
        if self._template is None:
            from models.chat_template import ChatTemplate  # jinja2 is imported when a chat needs it

            self._template = ChatTemplate(self._template_text, self._special_tokens)
        return self._template.render(messages, add_generation_prompt=add_generation_prompt, **variables)


def _backend(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as fault:  # the library raises plain Exception
            reason = " ".join(str(fault).split())[:300]
            raise ModelLoadError(f"{path} is no valid tokenizer ({reason}); download it again") from fault
    try:
        from transformers import AutoTokenizer

        backend = AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    except Exception as fault:  # whatever the model's own tokenizer class raises, a missing package included
        reason = " ".join(str(fault).split())[:300]
        raise ModelLoadError(
            f"{folder} has no tokenizer.json, and transformers can't make one ({reason}); add a tokenizer.json"
        ) from fault
    assert isinstance(backend, Tokenizer)
    return backend


def _add_tokens(tokenizer: Tokenizer, settings: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """Adds the tokens that tokenizer_config.json lists and tokenizer.json lacks, and makes named ones special."""
    present = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    listed = settings.get("added_tokens_decoder") or {}
    for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        text = _text(entry)
        if text is None or text in present:
            continue
        flags = {key: bool(entry[key]) for key in ("lstrip", "rstrip", "single_word", "normalized") if key in entry}
        special = bool(entry.get("special", False))
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(
            [AddedToken(text, special=special, **flags)]
        )
        present[text] = special
    for name in NAMED_TOKENS:
        text = _text(named.get(name))
        if text and text not in present and tokenizer.token_to_id(text) is not None:
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])


def _template_text(folder: Path, settings: Mapping[str, Any], override: str | None) -> str | None:
    """The operator's template, else chat_template.jinja, else those of tokenizer_config.json and chat_template.json."""
    if override is not None:
        from models.chat_template import read_chat_template

        return read_chat_template(override)
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as fault:
            raise ModelLoadError(f"{file} can't be read ({fault}); download it again") from fault
    for template in (settings.get("chat_template"), _read_object(folder / "chat_template.json").get("chat_template")):
        if isinstance(template, list):  # several named ones
            by_name = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = by_name.get("default")
        if isinstance(template, str):
            return template
    return None


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object from an optional file; empty without the file."""
    if not path.is_file():
        return {}
    try:
        contents = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as fault:
        raise ModelLoadError(f"{path} is not valid JSON ({fault}); download it again") from fault
    if not isinstance(contents, dict):
        raise ModelLoadError(f"{path} holds no JSON object; download it again")
    return contents


def _text(token: Any) -> str | None:
    """The text of a token that is given as a string or as an object with `content`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _texts(tokens: Any) -> list[str]:
    if isinstance(tokens, Mapping):
        tokens = list(tokens.values())
    return [text for token in tokens or [] if (text := _text(token)) is not None]


def _surrogates(text: str, fault: TypeError) -> Exception:
    """The error for a text the tokenizer refuses: lone surrogates, or else a caller's mistake."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        code = ord(text[problem.start])
        return InvalidRequest(
            f"the text is not valid Unicode: lone surrogate U+{code:04X} at character {problem.start}"
        )
    return fault
