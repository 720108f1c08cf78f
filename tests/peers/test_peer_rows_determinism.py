"""Rows 15, 16 and 20: the same request gives the same text, whoever else is there and whenever it comes."""

import random
from typing import Any

import pytest
from peer_server import CHAT, COMPLETIONS, ENDPOINTS, PeerServer, request_body

both = pytest.mark.parametrize("path", ENDPOINTS)
streamed = pytest.mark.parametrize("stream", [False, True])


@both
def test_row_15_a_greedy_answer_does_not_depend_on_its_neighbours(peer: PeerServer, path: str) -> None:
    """row 15: vllm-project/vllm#23138: alone, then with 15 others of other lengths, pipelines and ends."""
    mine = request_body(path, "%alone", temperature=0, max_tokens=40)
    (alone,) = peer.at_once([(path, mine)])
    assert len(alone.text) > 20
    for round_number in range(3):
        generator = random.Random(round_number)
        others = [
            (
                generator.choice(ENDPOINTS),
                {
                    "temperature": generator.choice([0, 1]),
                    "top_k": generator.choice([0, 3]),
                    "n": generator.choice([1, 2]),
                },
            )
            for _ in range(15)
        ]
        requests = [
            (other, request_body(other, "%" + "x" * generator.randrange(80), **fields)) for other, fields in others
        ]
        place = generator.randrange(16)
        requests.insert(place, (path, mine))
        assert peer.at_once(requests)[place].text == alone.text


@both
@streamed
def test_row_16_a_seed_repeats(peer: PeerServer, path: str, stream: bool) -> None:
    """row 16: vllm-project/vllm#21310, ml-explore/mlx-lm#1245, mudler/LocalAI#6734"""
    texts = [peer.ask(path, "?", seed=seed, stream=stream).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@both
def test_row_16_seeds_in_parallel(peer: PeerServer, path: str) -> None:
    """row 16: mudler/LocalAI#6734: a seed is the request's own, whatever others run, in whatever order they arrive."""
    seeds = [*range(12), *range(12)]
    expected = {seed: peer.ask(path, "?", seed=seed).text for seed in range(12)}
    assert len(set(expected.values())) == 12
    for shuffle in range(2):
        random.Random(shuffle).shuffle(seeds)
        replies = peer.at_once([(path, request_body(path, "?", seed=seed)) for seed in seeds])
        assert [reply.text for reply in replies] == [expected[seed] for seed in seeds]


@both
def test_row_16_choices_of_one_seed(peer: PeerServer, path: str) -> None:
    """row 16: vllm-project/vllm#21310 with n: choices differ, and choice i does not depend on n."""
    five = peer.ask(path, "?", seed=9, n=5).texts
    assert len(set(five)) == 5
    for n in (1, 2, 5):
        assert peer.ask(path, "?", seed=9, n=n).texts == five[:n]
        assert peer.ask(path, "?", seed=9, n=n, stream=True).texts == five[:n]


def test_row_16_batches_of_one_seed(peer: PeerServer) -> None:
    """row 16: ml-explore/mlx-lm#1245 with lists of prompts: each as if it were alone, in any order."""
    prompts = ["?one|", "?three|", "?one|", "%x|"]
    alone = [peer.complete(prompt, seed=4, n=2).texts for prompt in prompts]
    assert peer.complete(prompts, seed=4, n=2).texts == [text for texts in alone for text in texts]
    assert peer.complete(prompts[::-1], seed=4, n=2).texts == [text for texts in alone[::-1] for text in texts]
    assert alone[0] == alone[2]


def test_row_16_best_of_repeats_and_is_best(peer: PeerServer) -> None:
    """row 16: vllm-project/vllm#21310 with best_of: of the n choices that the seed gives, those with the best means."""
    candidates = peer.complete("%b|", seed=5, n=6, max_tokens=12, logprobs=0)
    means = [sum(parts[0]["token_logprobs"]) / len(parts[0]["token_logprobs"]) for parts in candidates.logprobs]
    ranked = [text for _, text in sorted(zip(means, candidates.texts, strict=True), key=lambda pair: -pair[0])]
    assert len(set(ranked)) == 6
    for n in (1, 3):
        for _ in range(2):
            reply = peer.complete("%b|", seed=5, n=n, best_of=6, max_tokens=12)
            assert reply.texts == ranked[:n]
            assert reply.usage is not None
            assert reply.usage["completion_tokens"] == 12 * n
            assert reply.usage["decoding"]["output_tokens"] == 12 * 6


@both
def test_row_16_the_whole_range_of_seeds(peer: PeerServer, path: str) -> None:
    """row 16: mudler/LocalAI#6734: 0, negative and 64-bit seeds are seeds, each its own."""
    seeds = [0, -1, 1, 2**31, -(2**63), 2**63 - 1, 2**64 - 2]
    texts = [peer.ask(path, "?", seed=seed).text for seed in seeds]
    assert texts == [peer.ask(path, "?", seed=seed).text for seed in seeds]
    assert len(set(texts)) == len(seeds)


@both
def test_row_16_the_seed_of_a_reply_repeats_it(peer: PeerServer, path: str) -> None:
    """row 16: mudler/LocalAI#6734 without a seed: answers differ, and each says how to get it again."""
    first, second = (peer.ask(path, "?") for _ in range(2))
    assert first.text != second.text
    assert first.decoding is not None
    assert peer.ask(path, "?", seed=first.decoding["seed"]).text == first.text


def test_row_16_a_seed_survives_preemption_and_the_cache(serve_peer: Any) -> None:
    """row 16: vllm-project/vllm#21310 under memory pressure: 8 answers where 3 fit, against a roomy server."""
    bodies = [(COMPLETIONS, request_body(COMPLETIONS, "?" + "x" * i, seed=i, max_tokens=60)) for i in range(8)]
    roomy, tight = serve_peer(), serve_peer(max_model_len=128, num_slots=256)
    expected = [roomy.post(path, body).json()["choices"][0]["text"] for path, body in bodies]
    for _ in range(2):
        assert [reply.text for reply in tight.at_once(bodies)] == expected
    assert tight.status.preemptions > 0
    tight.wait_until_idle()


def test_row_20_mixed_load_leaves_nothing_empty_or_hanging(peer: PeerServer) -> None:
    """row 20: InternLM/lmdeploy#3144, #394: 64 requests at once, five times: all end, none empty, same texts."""
    generator = random.Random(20)
    requests = []
    for number in range(64):
        path = generator.choice(ENDPOINTS)
        fields = {"seed": number, "stream": number % 2 == 0, "max_tokens": generator.randrange(4, 24)}
        if number % 5 == 0:
            fields["n"] = 2
        if number % 7 == 0:
            fields |= {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
        requests.append((path, request_body(path, generator.choice(["?", "%"]), **fields)))
    first: list[list[str]] = []
    for _ in range(5):
        replies = peer.at_once(requests)
        texts = [reply.texts for reply in replies]
        assert all(text for reply in texts for text in reply)
        for (_, body), reply in zip(requests, replies, strict=True):
            assert set(reply.finish_reasons) == {"length"}
            assert reply.usage is None or reply.usage["completion_tokens"] == len(reply.texts) * body["max_tokens"]
        first = first or texts
        assert texts == first
    peer.wait_until_idle()
