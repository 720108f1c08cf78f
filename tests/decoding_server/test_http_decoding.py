"""The `decoding` object: slots, shorthands, presets, precedence, strictness, and what the reply says."""

import pytest

from decoding_server.decoding import HEADER
from strategies.registry import registered

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BODY = {"prompt": "?|", "max_tokens": 6, "seed": 3}


def decoding_of(server, decoding, *, headers=None, **fields):
    response = server.post(COMPLETIONS, {**BODY, "decoding": decoding, **fields}, headers=headers or {})
    assert response.status_code == 200, response.text
    return response.json()["decoding"]


def refused(server, decoding, *, headers=None, **fields):
    response = server.post(COMPLETIONS, {**BODY, "decoding": decoding, **fields}, headers=headers or {})
    assert response.status_code == 400, response.text
    return response.json()["error"]["param"]


TYPICAL = [{"type": "typical_p", "mass": 0.5}]


@pytest.mark.parametrize(
    "decoding",
    [
        {"sampler": {"type": "typical_p", "mass": 0.5}},
        {"sampler": [{"type": "typical_p", "mass": 0.5}]},
        {"strategy": "typical_p", "mass": 0.5},
    ],
)
def test_the_ways_to_name_a_sampler(server, decoding):
    assert decoding_of(server, decoding)["sampler"] == TYPICAL


def test_a_bare_name_takes_the_defaults(server):
    (found,) = decoding_of(server, "mirostat")["sampler"]
    assert found == {"type": "mirostat", "tau": 5.0, "eta": 0.1}
    assert decoding_of(server, {"sampler": "mirostat"})["sampler"] == [found]


def test_the_resolved_decoding_can_be_sent_back(server):
    asked = {
        "sampler": [{"type": "top_p", "p": 0.9}, {"type": "xtc", "threshold": 0.2, "probability": 0.3}],
        "penalty": {"type": "dry", "multiplier": 0.5},
        "budget": {"output_tokens": 4},
    }
    first = server.post(COMPLETIONS, {**BODY, "decoding": asked, "temperature": 0.7}).json()
    resolved = first["decoding"]
    assert resolved["pipeline"] == ["dry", "temperature", "top_p", "xtc"]
    assert resolved["budget"] == {"output_tokens": 4}
    again = {name: resolved[name] for name in ("sampler", "penalty", "pipeline", "budget")}
    second = server.post(
        COMPLETIONS,
        {**BODY, "decoding": again, "temperature": resolved["temperature"], "seed": resolved["seed"]},
    ).json()
    assert second["decoding"] == resolved
    assert second["choices"] == first["choices"]


def test_a_seed_that_was_chosen_by_the_server_repeats_the_answer(server):
    first = server.post(COMPLETIONS, {"prompt": "?|"}).json()
    second = server.post(COMPLETIONS, {"prompt": "?|", "seed": first["decoding"]["seed"]}).json()
    assert second["choices"] == first["choices"]
    assert server.post(COMPLETIONS, {"prompt": "?|"}).json()["choices"] != first["choices"]


def test_streams_say_it_in_their_first_chunk(server):
    import json

    for path, body in ((COMPLETIONS, BODY), (CHAT, {"messages": [{"role": "user", "content": "ab"}]})):
        reply = server.post(path, {**body, "decoding": "mirostat", "stream": True})
        chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
        assert chunks[0]["decoding"]["sampler"][0]["type"] == "mirostat"
        assert all("decoding" not in chunk for chunk in chunks[1:])


def test_pipeline_changes_places(server):
    fields = {"temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.1}
    assert decoding_of(server, {}, **fields)["pipeline"] == ["repetition_penalty", "temperature", "top_p"]
    order = {"pipeline": ["top_p", "temperature"]}
    assert decoding_of(server, order, **fields)["pipeline"] == ["repetition_penalty", "top_p", "temperature"]


@pytest.mark.parametrize(
    ("decoding", "param"),
    [
        ("nonsense", "decoding"),
        ({"strategy": "nonsense"}, "decoding.strategy"),
        ({"strategy": 5}, "decoding.strategy"),
        ({"samplr": {}}, "decoding.samplr"),
        ({"sampler": {"type": "nonsense"}}, "decoding.sampler.type"),
        ({"sampler": {"type": "dry"}}, "decoding.sampler.type"),
        ({"sampler": {}}, "decoding.sampler"),
        ({"sampler": 5}, "decoding.sampler"),
        ({"sampler": {"type": "top_p"}}, "decoding.sampler.p"),
        ({"sampler": {"type": "top_p", "p": 1.5}}, "decoding.sampler.p"),
        ({"sampler": {"type": "top_p", "p": "0.5"}}, "decoding.sampler.p"),
        ({"sampler": {"type": "top_p", "p": 0.5, "q": 1}}, "decoding.sampler.q"),
        ({"sampler": [{"type": "top_p", "p": 0.5}, {"type": "top_k"}]}, "decoding.sampler[1].k"),
        ({"sampler": [{"type": "top_p", "p": 0.5}, {"type": "top_p", "p": 0.6}]}, "decoding"),
        ({"sampler": {"type": "bregman"}}, "decoding.sampler.lambda"),
        ({"sampler": {"type": "bregman", "k": 5, "k_max": 9}}, "decoding.sampler.k_max"),
        ({"sampler": ["mirostat", {"type": "bregman", "tau": 2.0}]}, "decoding.sampler[1].tau"),
        ({"penalty": {"type": "top_p", "p": 0.5}}, "decoding.penalty.type"),
        ({"pipeline": ["nonsense"]}, "decoding.pipeline[0]"),
        ({"pipeline": ["top_p", "top_p"]}, "decoding.pipeline[1]"),
        ({"pipeline": "top_p"}, "decoding.pipeline"),
        ({"budget": {"tokens": 5}}, "decoding.budget.tokens"),
        ({"budget": {"seconds": -1}}, "decoding.budget.seconds"),
        (5, "decoding"),
        ([], "decoding"),
        ({"speculation": {"type": "rsd-s"}}, "decoding.speculation"),
        ({"search": "telepathy"}, "decoding.search.type"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(server, decoding, param):
    assert refused(server, decoding) == param


def test_a_transform_asked_for_twice_is_refused(server):
    assert refused(server, {"sampler": {"type": "top_p", "p": 0.5}}, top_p=0.4) == "decoding"


@pytest.fixture
def preset_server(serve):
    calm, bold = {"type": "top_p", "p": 0.3}, {"type": "typical_p", "mass": 0.5}
    presets = {"calm": {"sampler": calm}, "bold": {"sampler": bold}}
    return serve({"presets": presets, "decoding": "calm", "served_model_name": ["m"]})


def test_precedence(preset_server):
    """Body, then model name, then header, then the server's default; the first alone counts."""

    def sampler(headers=None, **fields):
        response = preset_server.post(COMPLETIONS, {**BODY, **fields}, headers=headers or {})
        assert response.status_code == 200, response.text
        return [one["type"] for one in response.json()["decoding"]["sampler"]]

    bold = {HEADER: "bold"}
    assert sampler() == ["top_p"]
    assert sampler(bold) == ["typical_p"]
    assert sampler(bold, model="m@calm") == ["top_p"]
    assert sampler(bold, model="m@mirostat") == ["mirostat"]
    assert sampler(bold, model="m@calm", decoding={"sampler": "mirostat"}) == ["mirostat"]
    assert sampler(bold, model="m@calm", decoding={"budget": {"output_tokens": 5}}) == []
    assert sampler(bold, decoding=None) == ["typical_p"]


def test_presets_are_models(preset_server):
    listed = [model["id"] for model in preset_server.get("/v1/models").json()["data"]]
    assert listed == ["m", "m@calm", "m@bold"]
    assert preset_server.get("/v1/models/m@bold").json()["root"] == "scripted"
    assert preset_server.get("/v1/models/m@nonsense").status_code == 404
    response = preset_server.post(COMPLETIONS, {**BODY, "model": "m@bold"})
    assert response.json()["model"] == "m@bold"


def test_names_that_do_not_exist(preset_server):
    response = preset_server.post(COMPLETIONS, {**BODY, "model": "other@calm"})
    assert response.status_code == 404
    response = preset_server.post(COMPLETIONS, {**BODY, "model": "m@nonsense"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert refused(preset_server, None, headers={HEADER: "nonsense"}) == HEADER


def test_a_preset_takes_no_parameters(preset_server):
    assert refused(preset_server, {"strategy": "calm", "p": 0.5}) == "decoding.strategy"


def test_a_preset_has_any_form_that_decoding_has(serve):
    """A name, or a name with parameters; its own name inside it is the strategy's."""
    presets = {
        "vote": {"strategy": "majority", "samples": 3},
        "mild": "dry",
        "milder": "mild",
        "top_k": {"strategy": "top_k", "k": 3},
        "plain": {"sampler": "mirostat", "budget": {"seconds": 9}},
        "lost": "nonsense",
        "ring": "back",
        "back": {"strategy": "ring"},
    }
    server = serve({"presets": presets, "decoding": "vote", "served_model_name": ["m"]})
    assert decoding_of(server, None)["search"]["samples"] == 3
    assert decoding_of(server, None, model="m@mild")["penalty"][0]["type"] == "dry"
    assert decoding_of(server, {"strategy": "milder"})["penalty"][0]["type"] == "dry"
    assert decoding_of(server, None, headers={HEADER: "top_k"})["sampler"] == [{"type": "top_k", "k": 3}]
    assert refused(server, "lost") == "decoding"
    assert refused(server, "ring") == "decoding.strategy"
    listed = server.get("/v1/strategies").json()["presets"]
    assert listed == presets | {
        "vote": {"search": {"type": "majority", "samples": 3}},
        "mild": {"penalty": {"type": "dry"}},
        "milder": {"penalty": {"type": "dry"}},
        "top_k": {"sampler": {"type": "top_k", "k": 3}},
    }


def test_strategies_are_listed_with_schemas(server):
    listing = server.get("/v1/strategies").json()
    by_name = {strategy["id"]: strategy for strategy in listing["data"]}
    assert {"top_p", "typical_p", "mirostat", "xtc", "dry", "no_repeat_ngram"} <= set(by_name)
    assert "logit_bias" not in by_name
    assert by_name["top_p"]["parameters"]["properties"]["p"]["maximum"] == 1
    assert by_name["dry"]["slot"] == "penalty"
    kinds = {**registered("transform"), **registered("speculation")}
    ours = [name for name, kind in kinds.items() if name in by_name and kind.__module__.startswith("strategies.")]
    assert len(ours) > 20
    assert all(by_name[name]["summary"] for name in ours)
    assert listing["budget"]["properties"].keys() == {"forward_tokens", "output_tokens", "flops", "seconds"}
