"""Rows 1 to 5: stop strings, characters of several tokens, and where an answer ends."""

import json
from itertools import product
from typing import Any

import pytest
from peer_model import BAR, END, TOKEN_OF, USER, play, splits
from peer_server import CHAT, COMPLETIONS, ENDPOINTS, PeerServer

PICTURES = "a\N{GRINNING FACE}b\N{BLACK HEART SUIT}c"

both = pytest.mark.parametrize("path", ENDPOINTS)
streamed = pytest.mark.parametrize("stream", [False, True])


def cut(text: str, stops: list[str], *, include: bool = False) -> str:
    """The text as if characters came one by one: it ends where the first stop string is complete."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end if include else end - max(map(len, found))]
    return text


@both
def test_row_1_no_piece_of_a_stop_string_is_streamed(peer: PeerServer, path: str) -> None:
    """row 1: vllm-project/vllm#3574, #2577"""
    reply = peer.ask(path, play("X", "DE", "F", "GH"), stop=["DEFGH"], stream=True)
    assert reply.end == ("X", "stop")
    assert reply.stop_reasons == ["DEFGH"]


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("XDEFGH", ["DEFGH"]),
        ("XDEFGH", ["GH"]),
        ("XDEFGH", ["DE", "DEFGH"]),  # one a prefix of the other
        ("XDEFGH", ["DEFGH", "EF"]),  # one inside the other
        ("XDEFGH", ["FGH", "DEFGH"]),  # one a suffix of the other
        ("XDEFGH", ["DEX", "FGX", "H"]),  # false starts
        ("XDEFGH", ["XDEFGHI"]),  # never complete
        (PICTURES, ["\N{BLACK HEART SUIT}"]),
        (PICTURES, ["\N{GRINNING FACE}b\N{BLACK HEART SUIT}"]),
        (PICTURES, ["b\N{WHITE HEART SUIT}", "c"]),  # begins with the bytes of what comes
    ],
)
@pytest.mark.parametrize("include", [False, True])
def test_row_1_a_stop_string_ends_the_text_wherever_the_tokens_are_cut(
    peer: PeerServer, text: str, stops: list[str], include: bool
) -> None:
    """row 1: vllm-project/vllm#3574, in every split into tokens; whole and streamed agree."""
    prompts = [f"{play(*way)}|" for way in splits(text.encode())[:: 4 if include else 1]]
    fields = {"stop": stops, "max_tokens": 20, "include_stop_str_in_output": include}
    whole = peer.complete(prompts, **fields)
    assert set(whole.texts) == {cut(text, stops, include=include)}
    assert set(whole.finish_reasons) == {"stop"}
    assert len(set(whole.stop_reasons)) == 1
    stream = peer.complete(prompts[::8], stream=True, **fields)
    assert (stream.texts, stream.stop_reasons) == (whole.texts[::8], whole.stop_reasons[::8])
    assert "\ufffd" not in "".join(choice["text"] for chunk in stream.chunks for choice in chunk["choices"])


@both
@streamed
def test_row_1_what_was_held_back_comes_at_the_end(peer: PeerServer, path: str, stream: bool) -> None:
    """row 1: vllm-project/vllm#3574; a stop string that is cut off by the limit, or by the end, is text after all."""
    script = play("X", "DE", "F", "GH")
    assert peer.ask(path, script, stop=["DEFGH"], max_tokens=3, stream=stream).end == ("XDEF", "length")
    assert peer.ask(path, script, stop=["GHI"], stream=stream).end == ("XDEFGH", "stop")


def test_row_1_text_that_cannot_become_a_stop_string_is_not_held_back(peer: PeerServer) -> None:
    """row 1 and vllm-project/vllm#11089: a long stop string must not delay a short answer."""
    reply = peer.ask(COMPLETIONS, play("X", "DE", "F"), stop=["Q" * 50], stream=True)
    assert [choice["text"] for chunk in reply.chunks for choice in chunk["choices"]] == ["X", "DE", "F", ""]


@streamed
def test_row_1_stop_strings_do_not_count_in_the_prompt(peer: PeerServer, stream: bool) -> None:
    """row 1: vllm-project/vllm#3574; neither in the echoed prompt nor across its end."""
    prompt = f"{play('X', 'DE')} DE|"
    for stop in ("DE|", "|X", "|"):
        reply = peer.complete(prompt, echo=True, stop=stop, stream=stream)
        assert reply.end == (f"{prompt}XDE", "stop")
        assert reply.stop_reasons == [None]
    assert peer.complete(prompt, echo=True, stop="DE", stream=stream).text == f"{prompt}X"


@both
@streamed
def test_row_1_including_the_stop_string_includes_no_end_of_sequence(peer: PeerServer, path: str, stream: bool) -> None:
    """row 1: vllm-project/vllm#3574; an answer that ends by itself reads the same with and without the field."""
    reply = peer.ask(path, play("X", "DE"), stop=["Q"], include_stop_str_in_output=True, stream=stream)
    assert reply.end == ("XDE", "stop")


@both
@streamed
@pytest.mark.parametrize("stops", [["e"], ["a", "b", "c"], ["ab", "x"], ["qqqqqqqq"]])
def test_row_1_every_choice_has_its_own_stop(peer: PeerServer, path: str, stream: bool, stops: list[str]) -> None:
    """row 1: vllm-project/vllm#3574 with n > 1: each choice is its unstopped self, cut."""
    fields: dict[str, Any] = {"n": 6, "seed": 11, "max_tokens": 40}
    free = peer.ask(path, "?", **fields)
    assert len(set(free.texts)) == 6
    stopped = peer.ask(path, "?", stop=stops, stream=stream, **fields)
    assert stopped.texts == [cut(text, stops) for text in free.texts]
    for text, uncut, reason in zip(stopped.texts, free.texts, stopped.finish_reasons, strict=True):
        assert reason == ("length" if text == uncut else "stop")


@streamed
def test_row_1_logprobs_end_where_the_text_ends(peer: PeerServer, stream: bool) -> None:
    """row 1 with logprobs: no entry of a token that lies wholly in the stop string, and none that is lost."""
    script = play("X", "DE", "F", "GH")
    for stop, include, text, tokens in (
        ("DEFGH", False, "X", ["X"]),
        ("EFGH", False, "XD", ["X", "DE"]),
        ("FG", False, "XDE", ["X", "DE"]),
        ("FG", True, "XDEFG", ["X", "DE", "F", "GH"]),
        ("nothing", False, "XDEFGH", ["X", "DE", "F", "GH"]),
    ):
        fields: dict[str, Any] = {"stop": stop, "include_stop_str_in_output": include, "stream": stream}
        reply = peer.ask(CHAT, script, logprobs=True, **fields)
        assert (reply.text, [entry["token"] for entry in reply.entries]) == (text, tokens)
        arrays = peer.ask(COMPLETIONS, script, logprobs=0, **fields).arrays
        tokens = [*tokens, "<|end|>"] if stop == "nothing" else tokens  # one entry per generated token
        assert arrays["tokens"] == tokens
        starts = [len("".join(tokens[:i])) for i in range(len(tokens))]
        assert [offset - arrays["text_offset"][0] for offset in arrays["text_offset"]] == starts


@both
def test_row_2_a_character_of_several_tokens_is_one_piece(peer: PeerServer, path: str) -> None:
    """row 2: sgl-project/sglang#580, ml-explore/mlx-examples#808"""
    reply = peer.ask(path, play(b"\xf0\x9f", b"\x98\x80"), stream=True)
    assert reply.end == ("\N{GRINNING FACE}", "stop")
    choices = [choice for chunk in reply.chunks for choice in chunk["choices"]]
    pieces = [choice.get("text") or choice.get("delta", {}).get("content") for choice in choices]
    assert [piece for piece in pieces if piece] == ["\N{GRINNING FACE}"]


@both
def test_row_2_no_split_of_characters_shows(peer: PeerServer, path: str) -> None:
    """row 2: sgl-project/sglang#580, in every split (a sample of them on chat, which takes one prompt a request)."""
    ways = splits(PICTURES.encode())
    if path == COMPLETIONS:
        reply = peer.complete([f"{play(*way)}|" for way in ways], stream=True)
        assert set(reply.texts) == {PICTURES}
        replies = [reply]
    else:
        replies = [peer.ask(path, play(*way), stream=True) for way in ways[::32]]
        assert {reply.text for reply in replies} == {PICTURES}
    assert "\ufffd" not in json.dumps([reply.chunks for reply in replies], ensure_ascii=False)


@both
@streamed
def test_row_2_half_a_character_at_the_end_is_dropped(peer: PeerServer, path: str, stream: bool) -> None:
    """row 2: sgl-project/sglang#580 at the limit, at the end and before a stop."""
    script = play("a", b"\xf0\x9f", b"\x98\x80", "b")
    assert peer.ask(path, script, max_tokens=2, stream=stream).end == ("a", "length")
    assert peer.ask(path, play("a", b"\xf0\x9f"), stream=stream).end == ("a", "stop")
    ids = [TOKEN_OF[b"\x98\x80"]]
    assert peer.ask(path, script, stop_token_ids=ids, stream=stream).end == ("a", "stop")
    assert peer.ask(path, play("a", b"\xf0\x9f", "b"), stream=stream).end == ("a\ufffdb", "stop")  # it is no UTF-8


@both
@streamed
def test_row_3_a_stop_string_does_not_count_below_min_tokens(peer: PeerServer, path: str, stream: bool) -> None:
    """row 3: vllm-project/vllm#21987"""
    script = play(*"a\nbcdefgh\nij")
    reply = peer.ask(path, script, stop=["\n"], min_tokens=8, stream=stream)
    assert reply.end == ("a\nbcdefgh", "stop")
    assert reply.stop_reasons == ["\n"]
    assert reply.usage is None or reply.usage["completion_tokens"] == 10


@both
@pytest.mark.parametrize("min_tokens", range(6))
def test_row_3_every_minimum(peer: PeerServer, path: str, min_tokens: int) -> None:
    """row 3: vllm-project/vllm#21987; a stop string counts if the token that completes it is the min_tokens-th or
    later, also one of two tokens, and log-probabilities agree."""
    reply = peer.ask(path, play(*"bbbbbb"), stop=["b"], min_tokens=min_tokens)
    assert reply.end == ("b" * (max(1, min_tokens) - 1), "stop")
    fields: dict[str, Any] = {"logprobs": True} if path == CHAT else {"logprobs": 0}
    reply = peer.ask(path, play(*"babab"), stop=["ab"], min_tokens=min_tokens, **fields)
    assert reply.text == ("b" if min_tokens <= 3 else "bab")
    tokens = [entry["token"] for entry in reply.entries] if path == CHAT else reply.arrays["tokens"]
    assert "".join(tokens) == reply.text


@both
def test_row_3_ends_of_sequence_and_stop_ids_wait_too(peer: PeerServer, path: str) -> None:
    """row 3: vllm-project/vllm#21987 for the other ways to end."""
    reply = peer.ask(path, play("a"), min_tokens=5, max_tokens=9)
    assert reply.usage is not None
    assert 5 <= reply.usage["completion_tokens"] <= 9
    assert "<|end|>" not in reply.text
    reply = peer.ask(path, play(*"bcbcbcbc"), min_tokens=4, stop_token_ids=[ord("c")], max_tokens=9)
    assert reply.usage is not None
    assert reply.usage["completion_tokens"] >= 4


@both
@streamed
def test_row_4_a_special_token_as_a_stop_string(peer: PeerServer, path: str, stream: bool) -> None:
    """row 4: vllm-project/vllm#792"""
    reply = peer.ask(path, play("X", USER, "DE"), stop=["<|user|>"], stream=stream)
    assert reply.end == ("X", "stop")
    assert reply.stop_reasons == ["<|user|>"]


@both
@streamed
@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, ("XDE", "stop")),  # not asked for: it has no text, and the answer goes on
        ({"stop": ["<|user|>", "DE"], "skip_special_tokens": False}, ("X", "stop")),
        ({"stop": ["<|user|>"], "include_stop_str_in_output": True}, ("X<|user|>", "stop")),
        ({"stop_token_ids": [USER]}, ("X", "stop")),
        ({"stop_token_ids": [USER], "include_stop_str_in_output": True}, ("X<|user|>", "stop")),
        ({"skip_special_tokens": False}, ("X<|user|>DE", "stop")),
        ({"skip_special_tokens": False, "stop": ["r|>D"]}, ("X<|use", "stop")),
        ({"stop": ["XDE"]}, ("", "stop")),  # the visible text
        ({"stop": ["<|end|>"]}, ("XDE", "stop")),
        ({"stop": ["<|end|>"], "ignore_eos": True}, ("XDE", "stop")),
    ],
)
def test_row_4_special_tokens_in_every_role(
    peer: PeerServer, path: str, stream: bool, fields: dict[str, Any], end: tuple[str, str]
) -> None:
    """row 4: vllm-project/vllm#792"""
    assert peer.ask(path, play("X", USER, "DE"), stream=stream, **fields).end == end


@both
def test_row_4_the_text_of_a_special_token_is_a_stop_string_like_any_other(peer: PeerServer, path: str) -> None:
    """row 4: vllm-project/vllm#792, written by the model in ordinary tokens."""
    assert peer.ask(path, play(*"X<|user|>DE"), stop=["<|user|>"]).end == ("X", "stop")


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": "DE"},
        {"stop": ["DE"]},
        {"stop": ["DE"], "n": 3},
        {"stop": ["X"]},
        {"stop": ["F", "E"], "include_stop_str_in_output": True},
        {"stop_token_ids": [TOKEN_OF[b"DE"]]},
        {"stop": None},
        {"max_tokens": 2},
        {"max_completion_tokens": 1, "max_tokens": 2},
        {"min_tokens": 3, "stop": "DE"},
        {"ignore_eos": True, "max_tokens": 6},
        {"logit_bias": {str(END): 100}},
    ],
)
def test_row_5_both_endpoints_end_alike(peer: PeerServer, fields: dict[str, Any]) -> None:
    """row 5: huggingface/text-generation-inference#1999"""
    script = play("X", "DE", "F")
    replies = [
        peer.ask(path, script, temperature=0, stream=stream, **fields)
        for path, stream in product(ENDPOINTS, (False, True))
    ]
    first = replies[0]
    for reply in replies:
        assert (reply.texts, reply.finish_reasons) == (first.texts, first.finish_reasons)
        assert reply.stop_reasons == first.stop_reasons
    if fields.get("stop") and "min_tokens" not in fields:
        assert first.finish_reasons == ["stop"] * fields.get("n", 1)
        assert first.stop_reasons[0] in fields["stop"]


def test_row_5_the_bar_is_no_stop(peer: PeerServer) -> None:
    """row 5: a stop string that is never written changes nothing on either endpoint."""
    for path in ENDPOINTS:
        assert peer.ask(path, play("X"), stop=[chr(BAR)]).end == ("X", "stop")
