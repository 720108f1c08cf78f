"""Rows 22 and 23: chat templates that write the beginning of sequence themselves, or refuse a conversation."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peer_model import make_runtime
from peer_server import CHAT, COMPLETIONS, PeerServer, error_of, peer_server
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from models.tokenizer import HuggingFaceTokenizer

BOS, EOS = "<s>", "</s>"
MUST_ALTERNATE = "Conversation roles must alternate user/assistant/user/assistant/..."
STRICT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('"
    + MUST_ALTERNATE
    + "') }}{% endif %}"
    "[{{ message['role'] }}]{{ message['content'] | trim }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""Begins with the token that the tokenizer, too, puts before every text; takes user and assistant in turns only."""


def byte_tokenizer(template: str) -> HuggingFaceTokenizer:
    """A real tokenizer of bytes, `<s>` (before every text) and `</s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(BOS, special=True), AddedToken(EOS, special=True)])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return HuggingFaceTokenizer(tokenizer, special_tokens={"bos_token": BOS, "eos_token": EOS}, chat_template=template)


@pytest.fixture
def serve_template() -> Iterator[Callable[[str], PeerServer]]:
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(template: str) -> PeerServer:
            runtime = make_runtime(byte_tokenizer(template))
            return stack.enter_context(peer_server({}, runtime))

        yield start


@pytest.fixture(scope="module")
def strict() -> Iterator[PeerServer]:
    with peer_server({}, make_runtime(byte_tokenizer(STRICT_TEMPLATE))) as server:
        yield server


MESSAGES = [{"role": "user", "content": "hi"}]
RENDERED = "[user]hi[assistant]"


def test_row_22_a_single_beginning_of_sequence(strict: PeerServer) -> None:
    """row 22: vllm-project/vllm#27486: the template writes it, so the tokenizer must not; /tokenize agrees."""
    body = {"messages": MESSAGES, "max_tokens": 1, "return_token_ids": True}
    reply = strict.post(CHAT, body).json()
    bos = strict.runtime.tokenizer.bos_token_id
    assert reply["prompt_token_ids"].count(bos) == 1
    assert reply["prompt_token_ids"][0] == bos
    assert reply["usage"]["prompt_tokens"] == 1 + len(RENDERED)
    tokenized = strict.post("/tokenize", {"messages": MESSAGES}).json()
    assert tokenized["tokens"] == reply["prompt_token_ids"]
    assert tokenized["count"] == reply["usage"]["prompt_tokens"]


def test_row_22_a_prompt_gets_what_the_tokenizer_adds(strict: PeerServer) -> None:
    """row 22: vllm-project/vllm#27486 on completions, where no template writes it; both switches; ids as they are."""
    bos = strict.runtime.tokenizer.bos_token_id
    for fields, expected in (({}, 1), ({"add_special_tokens": True}, 1), ({"add_special_tokens": False}, 0)):
        body = {"prompt": "hi", "max_tokens": 1, "return_token_ids": True, **fields}
        ids = strict.post(COMPLETIONS, body).json()["choices"][0]["prompt_token_ids"]
        assert ids.count(bos) == expected
        assert strict.post("/tokenize", {"prompt": "hi", **fields}).json()["tokens"] == ids
        body = {"prompt": ids, "max_tokens": 1, "return_token_ids": True, **fields}
        assert strict.post(COMPLETIONS, body).json()["choices"][0]["prompt_token_ids"] == ids
        rendered = strict.post(CHAT, {"messages": MESSAGES, "max_tokens": 1, "return_token_ids": True, **fields}).json()
        assert rendered["prompt_token_ids"].count(bos) == (2 if fields.get("add_special_tokens") else 1)
        tokenized = strict.post("/tokenize", {"messages": MESSAGES, **fields}).json()
        assert tokenized["tokens"] == rendered["prompt_token_ids"]


def test_row_22_a_template_without_one(serve_template: Callable[[str], PeerServer]) -> None:
    """row 22: vllm-project/vllm#27486 the other way round: what the template leaves out is not slipped in."""
    server = serve_template(STRICT_TEMPLATE.removeprefix("{{ bos_token }}"))
    reply = server.post(CHAT, {"messages": MESSAGES, "max_tokens": 1}).json()
    assert reply["usage"]["prompt_tokens"] == len(RENDERED)
    assert server.post("/tokenize", {"messages": MESSAGES}).json()["count"] == len(RENDERED)


@pytest.mark.parametrize("stream", [False, True])
def test_row_23_a_template_that_refuses_is_a_400(strict: PeerServer, stream: bool) -> None:
    """row 23: vllm-project/vllm#16774, janhq/jan#6254: two user messages in a row."""
    body = {"messages": [*MESSAGES, *MESSAGES], "max_tokens": 1}
    error = error_of(strict.post(CHAT, {**body, "stream": stream}), 400)
    assert error["param"] == "messages"
    assert MUST_ALTERNATE in error["message"]
    error = error_of(strict.post("/tokenize", {"messages": body["messages"]}), 400)
    assert MUST_ALTERNATE in error["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "hi"}],
        [{"role": "system", "content": "be good"}, *MESSAGES],
        [{"role": "developer", "content": "be good"}, *MESSAGES],
        [*MESSAGES, {"role": "tool", "content": "7", "tool_call_id": "1"}, {"role": "assistant", "content": "x"}],
    ],
)
def test_row_23_roles_that_the_template_does_not_take(strict: PeerServer, messages: list[dict[str, Any]]) -> None:
    """row 23: vllm-project/vllm#16774: other conversations that are well formed for the API and not for the model."""
    response = strict.post(CHAT, {"messages": messages, "max_tokens": 1})
    assert MUST_ALTERNATE in error_of(response, 400)["message"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[5].content }}",
        "{{ messages[0].content.nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ messages | none_such }}",
        "{% for message in messages %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception('no') }}",
        "{{ raise_exception(5) }}",
        "{% for i in range(999999999) %}x{% endfor %}",
    ],
)
def test_row_23_a_template_that_fails_is_a_400_and_harms_nobody(
    serve_template: Callable[[str], PeerServer], template: str
) -> None:
    """row 23: janhq/jan#6254: whatever a template does, the request is at fault or the model is; the server lives."""
    server = serve_template(template)
    for path in (CHAT, "/tokenize"):
        assert error_of(server.post(path, {"messages": MESSAGES}), 400)["param"] == "messages"
    assert server.post(COMPLETIONS, {"prompt": "a", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "rendered"),
    [
        ({"add_generation_prompt": False}, "<s>[user]hi"),
        ({"continue_final_message": True}, "<s>[user]hi"),
        ({"chat_template_kwargs": {"mood": "good"}}, "<s>[user]hi[assistant]"),
    ],
)
def test_row_22_what_else_renders_has_one_too(strict: PeerServer, fields: dict[str, Any], rendered: str) -> None:
    """row 22: vllm-project/vllm#27486 with the other ways to end a prompt."""
    reply = strict.post(CHAT, {"messages": MESSAGES, "max_tokens": 1, "return_token_ids": True, **fields}).json()
    text = strict.post("/detokenize", {"tokens": reply["prompt_token_ids"]}).json()["prompt"]
    assert text == rendered
