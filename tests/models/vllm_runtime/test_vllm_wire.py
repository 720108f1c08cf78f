"""How a request reaches the processor in vLLM's worker, and how that one reports back."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from models.scripted import ByteTokenizer
from models.vllm_runtime.notes import CHUNK, Kind, NoteReader, NoteWriter
from models.vllm_runtime.wire import KEY, Decoder, encode, split
from strategies.registry import registered
from strategies.runtime import Generation, SamplingParameters, StopConditions
from strategies.sampling.structured import compile_structure
from strategies.sampling.structured_grammar import Regex

TOKENIZER = ByteTokenizer()
FIELDS = {
    "allowed_token_ids": {"ids": [5, 1]},
    "bad_words": {"sequences": [[1, 2], [3]]},
    "bregman": {"alpha": 1.5, "lambda": 0.01, "mode": "primal"},
    "contrastive": {"k": 3},
    "dry": {"sequence_breakers": ["\n", "ä"]},
    "epsilon_cutoff": {"epsilon": 0.1},
    "eta_cutoff": {"epsilon": 0.1},
    "grammar": {"language": "python"},
    "logit_bias": {"bias": {3: 0.1, 7: -100.0}},
    "min_p": {"p": 0.1},
    "min_tokens": {"min_tokens": 2, "endings": (1,)},
    "mirostat": {"tau": 3.0},
    "no_repeat_ngram": {"size": 2},
    "presence_frequency_penalty": {"presence": 0.1, "frequency": 1 / 3},
    "repetition_penalty": {"penalty": 1.1},
    "temperature": {"temperature": 0.7},
    "top_k": {"k": 5},
    "top_n_sigma": {"n": 1.5},
    "top_p": {"p": 0.9},
    "typical_p": {"mass": 0.5},
    "xtc": {"threshold": 0.1},
}


@pytest.mark.parametrize("name", sorted(set(registered("transform")) - {"structure"}))
def test_every_transform_survives_the_way(name: str) -> None:
    kind = registered("transform")[name]
    transform = kind(**FIELDS[name])
    text = transform.encoded()
    json.loads(text)
    assert kind.decoded(text, TOKENIZER) == transform


def test_a_grammar_survives_the_way() -> None:
    transform = compile_structure(Regex("[ab]+"), TOKENIZER)
    again = type(transform).decoded(transform.encoded(), ByteTokenizer())
    matcher = again.grammar.start()
    assert matcher.validate_tokens([ord("a"), ord("b")]) == 2
    assert matcher.validate_tokens([ord("c")]) == 0


def test_a_generation_survives_the_way() -> None:
    transforms = (registered("transform")["top_k"](k=3), registered("transform")["dry"]())
    generation = Generation(
        [1, 2, 3],
        SamplingParameters(0.25, transforms, ("dry", "top_k")),
        StopConditions(min_tokens=2, stop_token_ids=frozenset({9, 4}), ignore_eos=True),
        seed=2**64 - 1,
        branch=(3, 2**40),
        logprobs=4,
        logprobs_mode="processed",
        pooling="last",
        answer=[7, 8],
    )
    sent = Decoder(TOKENIZER).decode(encode(generation, 17))
    assert sent is not None
    got = sent.generation
    assert (got.sampling, got.seed, got.branch) == (generation.sampling, generation.seed, generation.branch)
    stopping = generation.stopping
    assert (got.stopping.min_tokens, got.stopping.stop_token_ids) == (stopping.min_tokens, stopping.stop_token_ids)
    assert got.stopping.ignore_eos
    assert (sent.key, sent.answer, sent.processed, sent.hidden) == (17, 2, 4, True)
    assert split([1, 2, 3, 7, 8], sent.answer) == ([1, 2, 3], [7, 8])
    assert split([1, 2, 3], 0) == ([1, 2, 3], [])


def test_raw_logprobs_are_none_of_the_processors_business() -> None:
    sent = Decoder(TOKENIZER).decode(encode(Generation([1], logprobs=4), 1))
    assert sent is not None
    assert sent.processed is None


@pytest.mark.parametrize("extra", [None, {}, {"another": "x"}])
def test_requests_of_others_are_left_alone(extra: dict[str, str] | None) -> None:
    assert Decoder(TOKENIZER).decode(extra) is None


def test_equal_transforms_are_read_once() -> None:
    decoder = Decoder(TOKENIZER)
    arguments = encode(Generation([1], SamplingParameters(1.0, (registered("transform")["top_k"](k=3),))), 1)
    first, second = decoder.decode(arguments), decoder.decode(arguments)
    assert first is not None
    assert second is not None
    assert first.generation.sampling.transforms[0] is second.generation.sampling.transforms[0]
    assert KEY in arguments


# Notes


def test_notes_are_found_by_request_and_position() -> None:
    reader = NoteReader()
    writer = NoteWriter(str(reader.path))
    reader.expect(1)
    reader.expect(2)
    reader.receive()
    assert reader.take(1, Kind.LOGPROBS, 5) is None
    writer.logprobs(1, 5, np.array([3, 4], np.int32), np.array([-0.5, -1.0], np.float32))
    writer.logprobs(2, 5, np.array([9], np.int32), np.array([-2.0], np.float32))
    writer.hidden(1, 5, np.array([0.25, 0.5, 1.0], np.float32))
    writer.fault(2, "it is brökен")
    reader.receive()
    note = reader.take(1, Kind.LOGPROBS, 5)
    assert note is not None
    assert (note.ids.tolist(), note.values.tolist()) == ([3, 4], [-0.5, -1.0])
    assert reader.take(1, Kind.LOGPROBS, 5) is None
    hidden = reader.take(1, Kind.HIDDEN, 5)
    assert hidden is not None
    assert hidden.values.tolist() == [0.25, 0.5, 1.0]
    assert (reader.fault(1), reader.fault(2)) == (None, "it is brökен")
    reader.forget(2)
    writer.fault(2, "too late")
    reader.receive()
    assert reader.fault(2) is None
    reader.close()
    assert not reader.path.exists()


def test_a_worker_elsewhere_can_not_hide_a_fault(tmp_path: Path) -> None:
    """On another machine there is no pipe."""
    writer = NoteWriter(str(tmp_path / "notes"))
    writer.hidden(1, 5, np.zeros(2, np.float32))
    with pytest.raises(RuntimeError, match="it is broken"):
        writer.fault(1, "it is broken")
    NoteWriter(None).fault(1, "another rank tells it")


def test_the_last_note_of_a_position_counts() -> None:
    """A sample after a chunk of the prompt is none of the answer."""
    reader = NoteReader()
    writer = NoteWriter(str(reader.path))
    reader.expect(1)
    for value in (-1.0, -2.0):
        writer.logprobs(1, 5, np.array([3], np.int32), np.array([value], np.float32))
    reader.receive()
    note = reader.take(1, Kind.LOGPROBS, 5)
    assert note is not None
    assert note.values.tolist() == [-2.0]
    reader.close()


def test_a_note_may_be_longer_than_the_pipe() -> None:
    reader = NoteReader()
    writer = NoteWriter(str(reader.path))
    reader.expect(1)
    reader.expect(2)
    values = np.arange(CHUNK, dtype=np.float32)
    thread = threading.Thread(target=lambda: [writer.hidden(key, 1, values) for key in (1, 2)])
    thread.start()
    while thread.is_alive():
        reader.receive()
    reader.receive()
    for key in (1, 2):
        note = reader.take(key, Kind.HIDDEN, 1)
        assert note is not None
        assert np.array_equal(note.values, values)
    reader.close()
