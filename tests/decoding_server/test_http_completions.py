"""POST /v1/completions through the openai client: prompts, limits, stops, logprobs, streams, seeds, budgets."""

import math

import pytest
from scripted_server import END, TOKENIZER

MODEL = "scripted"


def complete(client, prompt="hello|", **fields):
    return client.completions.create(model=MODEL, prompt=prompt, **fields)


def test_answers_and_counts(client):
    reply = complete(client, max_tokens=50)
    assert (reply.object, reply.model, reply.system_fingerprint) == ("text_completion", MODEL, "scripted")
    assert reply.id.startswith("cmpl-")
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("hello", "stop")
    assert reply.choices[0].logprobs is None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (6, 6, 12)
    spend = reply.usage.decoding
    assert spend["target_tokens"] + spend["cached_tokens"] == 11  # the last sampled token is never computed
    assert (spend["output_tokens"], spend["budget_exhausted"]) == (6, None)
    assert spend["flops"] > 0
    assert spend["forward_passes"] == 6


def test_sixteen_tokens_by_default(client):
    reply = complete(client, "x" * 40 + "|")
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("x" * 16, "length")


def test_max_completion_tokens_wins(client):
    assert complete(client, max_tokens=1, extra_body={"max_completion_tokens": 3}).choices[0].text == "hel"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (["one|", "two|"], ["one", "two"]),
        (list(b"ids|"), ["ids"]),
        ([list(b"ids|"), list(b"more|")], ["ids", "more"]),
    ],
)
def test_prompt_forms(client, prompt, texts):
    reply = complete(client, prompt)
    assert [choice.text for choice in reply.choices] == texts
    assert [choice.index for choice in reply.choices] == list(range(len(texts)))


def test_choices_are_ordered_prompt_by_prompt_and_prompts_count_once(client):
    reply = complete(client, ["ab|", "c|"], n=3)
    assert [choice.text for choice in reply.choices] == ["ab"] * 3 + ["c"] * 3
    assert [choice.index for choice in reply.choices] == list(range(6))
    assert reply.usage.prompt_tokens == 5
    assert reply.usage.completion_tokens == 3 * 3 + 3 * 2
    assert reply.usage.prompt_tokens_details.cached_tokens <= 5


def test_cached_tokens_never_exceed_the_prompt(client):
    prompt = "cached again and again|"
    reply = [complete(client, prompt, n=4) for _ in range(2)][1]
    assert reply.usage.prompt_tokens_details.cached_tokens == reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.decoding["cached_tokens"] == 4 * (len(prompt) - 1)  # the last prompt token is always computed


def test_stop_strings_and_token_ids(client):
    reply = complete(client, "abcdef|", stop=["cd", "x"])
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("ab", "stop")
    assert reply.choices[0].stop_reason == "cd"
    assert complete(client, "abcdef|", stop="e").choices[0].text == "abcd"
    reply = complete(client, "abcdef|", extra_body={"stop_token_ids": [ord("d")]})
    assert (reply.choices[0].text, reply.choices[0].stop_reason) == ("abc", ord("d"))


def test_min_tokens_postpones_the_stop(client):
    assert complete(client, "abababab|", stop="b", extra_body={"min_tokens": 5}).choices[0].text == "ababa"


def test_ignore_eos_goes_on(client):
    reply = complete(client, "hi|", max_tokens=5, extra_body={"ignore_eos": True})
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("hi", "length")
    assert reply.usage.completion_tokens == 5


def test_logprobs_arrays(client):
    reply = complete(client, "hi|", logprobs=2)
    arrays = reply.choices[0].logprobs
    assert arrays.tokens == ["h", "i", TOKENIZER.token_bytes(END).decode()]  # harnesses rely on the last one
    assert arrays.token_logprobs == pytest.approx([0, 0, 0], abs=1e-4)
    assert arrays.text_offset == [3, 4, 5]
    for token, value, top in zip(arrays.tokens, arrays.token_logprobs, arrays.top_logprobs, strict=True):
        assert top[token] == value == max(top.values())
        assert len(top) == 2


def test_logprobs_zero_is_the_chosen_token_alone(client):
    arrays = complete(client, "hi|", logprobs=0).choices[0].logprobs
    assert len(arrays.token_logprobs) == 3
    assert arrays.top_logprobs == [{}, {}, {}]


def test_chosen_token_joins_the_alternatives_when_it_is_none_of_them(client):
    """A bias changes what is sampled, not the log-probabilities reported, which are the model's own."""
    reply = complete(client, "hi|", max_tokens=1, logprobs=1, temperature=0, logit_bias={ord("x"): 100})
    arrays = reply.choices[0].logprobs
    assert reply.choices[0].text == "x"
    assert arrays.top_logprobs[0] == {"h": pytest.approx(0, abs=1e-4), "x": arrays.token_logprobs[0]}
    assert arrays.token_logprobs[0] == pytest.approx(-60, abs=1e-3)


def test_echo_scores_the_prompt(client):
    """The loglikelihood request of lm-evaluation-harness: id lists, one token, echo."""
    prompts = [list(b"abc"), list(b"zz")]
    reply = complete(client, prompts, max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234)
    for prompt, choice in zip(prompts, reply.choices, strict=True):
        arrays = choice.logprobs
        assert choice.text[: len(prompt)] == bytes(prompt).decode()
        assert arrays.tokens[: len(prompt)] == [chr(token) for token in prompt]
        assert (arrays.token_logprobs[0], arrays.top_logprobs[0]) == (None, None)
        assert arrays.token_logprobs[1:] == pytest.approx([-math.log(26)] * len(prompt), abs=1e-3)
        assert arrays.text_offset == list(range(len(prompt) + 1))
        for token, value, top in list(zip(arrays.tokens, arrays.token_logprobs, arrays.top_logprobs, strict=True))[1:]:
            assert top[token] == value


def test_echo_of_nothing_but_the_prompt(client):
    reply = complete(client, "abc", max_tokens=0, echo=True, logprobs=0)
    assert reply.choices[0].text == "abc"
    assert len(reply.choices[0].logprobs.tokens) == 3
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (0, "length")


def test_partial_characters_are_spelt_out_as_bytes(client):
    reply = complete(client, "\N{BLACK HEART SUIT}!|", logprobs=0)
    arrays = reply.choices[0].logprobs
    assert reply.choices[0].text == "\N{BLACK HEART SUIT}!"
    assert arrays.tokens[:4] == ["bytes:\\xe2", "bytes:\\x99", "bytes:\\xa5", "!"]
    assert arrays.text_offset[:4] == [3, 3, 3, 4]


def test_stream_joins_to_the_answer(client):
    chunks = list(complete(client, ["abc|", "defgh|"], n=2, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *body, last = chunks
    assert (last.choices, last.usage.completion_tokens) == ([], 2 * 4 + 2 * 6)
    texts = ["", "", "", ""]
    finishes = [0, 0, 0, 0]
    for chunk in body:
        assert chunk.usage is None
        assert "usage" in chunk.model_fields_set  # null, not absent
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        finishes[choice.index] += choice.finish_reason is not None
    assert texts == ["abc", "abc", "defgh", "defgh"]
    assert finishes == [1, 1, 1, 1]


def test_streamed_arrays_equal_the_whole_ones(client):
    fields = {"logprobs": 1, "echo": True, "temperature": 0}
    whole = complete(client, "h\N{BLACK HEART SUIT}|", **fields).choices[0]
    chunks = [chunk.choices[0] for chunk in complete(client, "h\N{BLACK HEART SUIT}|", stream=True, **fields)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [value for chunk in chunks if chunk.logprobs for value in getattr(chunk.logprobs, name)]
        assert joined == getattr(whole.logprobs, name)


def test_no_usage_unless_asked(client):
    for fields in ({}, {"stream_options": {}}):
        assert all(chunk.usage is None for chunk in complete(client, "abc|", stream=True, **fields))


def test_logit_bias_forces_a_token(client):
    assert complete(client, "?|", temperature=0, max_tokens=8, logit_bias={ord("q"): 100}).choices[0].text == "q" * 8


def test_seed_repeats_and_batches_do_not_matter(client):
    alone = complete(client, "?one|", n=3, seed=-7).choices
    again = complete(client, "?one|", n=3, seed=-7).choices
    batch = complete(client, ["?other|", "?one|"], n=3, seed=-7).choices
    assert [choice.text for choice in alone] == [choice.text for choice in again]
    assert [choice.text for choice in alone] == [choice.text for choice in batch[3:]]
    assert len({choice.text for choice in alone}) == 3
    assert complete(client, "?one|", seed=8).choices[0].text != alone[0].text


def test_without_a_seed_answers_differ(client):
    assert complete(client, "?|").choices[0].text != complete(client, "?|").choices[0].text


def test_server_seed_makes_a_run_repeatable(serve):
    def first_two():
        with serve({"seed": 5}).client() as seeded:
            return [complete(seeded, "?|").choices[0].text for _ in range(2)]

    first = first_two()
    assert first == first_two()
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("budget", "expected", "unit"),
    [({"output_tokens": 3}, 3, "output_tokens"), ({"forward_tokens": 8}, 3, "forward_tokens")],
)
def test_budget_ends_the_request(serve, budget, expected, unit):
    """6 prompt tokens and 2 generated ones are 8 computed tokens; the third generated one is sampled from them."""
    with serve().client() as fresh:
        reply = complete(fresh, "hello|", max_tokens=50, extra_body={"decoding": {"budget": budget}})
    choice = reply.choices[0]
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("hello"[:expected], "length", f"budget:{unit}")
    assert reply.usage.decoding["budget_exhausted"] == unit


def test_a_budget_covers_all_choices(client):
    reply = complete(client, "?|", n=4, max_tokens=50, extra_body={"decoding": {"budget": {"output_tokens": 10}}})
    assert reply.usage.completion_tokens == reply.usage.decoding["output_tokens"] == 10
