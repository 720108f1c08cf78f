"""Process reward models: tiny random checkpoints of real transformers classes, read by each protocol, against a direct
computation that builds its input from the protocol's definition."""

import asyncio
import json
from contextlib import contextmanager

import httpx
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from decoding_server.app import create_app
from decoding_server.config import load_config
from models.loading import ModelFiles
from models.reward_models.load import load_reward_model
from models.reward_models.protocols import READERS, SYSTEM
from models.reward_models.reward_model import NO_STEPS, RewardModel, paragraphs, steps_of
from models.scripted import ByteTokenizer, scripted_runtime
from strategies.budget import Budget, Meter
from strategies.errors import ModelLoadError, RequestFailed
from strategies.runtime import Generation, StopConditions
from strategies.search.context import BudgetExhausted, SearchContext

TAGS = ["<extra_0>", "ки", " +", " -", " \n\n\n\n\n", "<|start|>", "<|end|>", "<|bos|>"]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
QUESTION = "Ann has 3 pens and buys 4. How many?"
STEPS = ["She has 3 + 4 pens.", "That is\n7 pens.", "The answer is 7."]
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
}


def byte_tokenizer(leave_out=()):
    """One token a byte, and the tags."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS if tag not in leave_out])
    return tokenizer


def checkpoint(folder, kind, *, architecture=None, extra=None, leave_out=(), **config):
    """Saves a tiny model of a transformers class; returns it. extra: further tensors."""
    tokenizer = byte_tokenizer(leave_out)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, "bos_token": "<|bos|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(vocab_size=tokenizer.get_vocab_size() + 3, **TINY, **config)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.save_pretrained(folder)
    if extra:
        weights = folder / "model.safetensors"
        save_file({**load_file(weights), **extra}, weights, metadata={"format": "pt"})
    if architecture:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": [architecture]}))
    return model, tokenizer, ModelFiles("tiny", "tests", folder)


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def hidden(model, tokens):
    with torch.inference_mode():
        return model.model(input_ids=torch.tensor([tokens])).last_hidden_state[0]


def pair(model, tokens, positions, good, bad):
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits[positions][:, [good, bad]].softmax(-1)[:, 0]


def places(tokens, tag):
    return [i for i, token in enumerate(tokens) if token == tag]


def math_shepherd(folder):
    model, tokenizer, files = checkpoint(folder, "MistralForCausalLM")
    lines = "\n".join(f"Step {i + 1}: {step} ки" for i, step in enumerate(STEPS))
    tokens = ids(tokenizer, f"{QUESTION} {lines}")
    tag, good, bad = (tokenizer.token_to_id(text) for text in ("ки", "+", "-"))
    return load_reward_model(files, protocol="math-shepherd"), pair(model, tokens, places(tokens, tag), good, bad)


def openr(folder):
    model, tokenizer, files = checkpoint(folder, "Qwen2ForCausalLM")
    tag, good, bad = (tokenizer.token_to_id(text) for text in (" \n\n\n\n\n", " +", " -"))
    tokens = ids(tokenizer, f"{QUESTION} " + "".join(step + " \n\n\n\n\n" for step in STEPS))
    return load_reward_model(files, protocol="openr"), pair(model, tokens, places(tokens, tag), good, bad)


def rlhflow(folder):
    """Every step in a sequence of its own, read at the third position from the end as RLHFlow's script does: here the
    template ends a turn with two tokens, so at the fourth."""
    model, tokenizer, files = checkpoint(folder, "LlamaForCausalLM")
    good, bad = tokenizer.token_to_id("+"), tokenizer.token_to_id("-")
    scores = []
    text = ""
    for i, step in enumerate(STEPS):
        text += f"<|start|>user\n{step if i else QUESTION + ' ' + step}<|end|>\n<|start|>assistant\n+<|end|>\n"
        tokens = ids(tokenizer, text)
        assert tokens[-3] == good
        scores.append(pair(model, tokens, [len(tokens) - 4], good, bad))
    return load_reward_model(files, protocol="rlhflow"), torch.cat(scores)


def qwen(folder):
    generator = torch.Generator().manual_seed(1)
    layers = [torch.nn.Linear(32, 32), torch.nn.Linear(32, 2)]
    extra = {}
    for number, layer in zip((0, 2), layers, strict=True):
        for kind in ("weight", "bias"):
            value = torch.randn(getattr(layer, kind).shape, generator=generator) * 0.5
            getattr(layer, kind).data = value
            extra[f"score.{number}.{kind}"] = value.clone()
    model, tokenizer, files = checkpoint(
        folder, "Qwen2ForCausalLM", architecture="Qwen2ForProcessRewardModel", extra=extra
    )
    answer = "<extra_0>".join(STEPS) + "<extra_0>"
    turns = [("system", SYSTEM), ("user", QUESTION), ("assistant", answer)]
    tokens = ids(tokenizer, "".join(f"<|start|>{role}\n{content}<|end|>\n" for role, content in turns))
    states = hidden(model, tokens)[places(tokens, tokenizer.token_to_id("<extra_0>"))]
    with torch.inference_mode():
        scores = layers[1](torch.relu(layers[0](states))).softmax(-1)[:, 1]
    return load_reward_model(files), scores


def skywork(folder):
    generator = torch.Generator().manual_seed(2)
    w, b = torch.randn(1, 32, generator=generator), torch.randn(1, generator=generator)
    extra = {"v_head.summary.weight": w, "v_head.summary.bias": b}
    model, tokenizer, files = checkpoint(folder, "Qwen2ForCausalLM", architecture="Qwen2ForPrmModel", extra=extra)
    tokens = ids(tokenizer, f"<|bos|>{QUESTION}\n")
    ends = []
    for line in "\n".join(STEPS).split("\n"):
        tokens += ids(tokenizer, line) + ids(tokenizer, "\n")
        ends.append(len(tokens) - 1)
    scores = (hidden(model, tokens)[ends] @ w.T + b)[:, 0].sigmoid()
    return load_reward_model(files), scores[[0, 2, 3]]  # the second step has two lines


def token_classification(folder):
    model, tokenizer, files = checkpoint(folder, "Qwen2ForTokenClassification", num_labels=2)
    tokens = ids(tokenizer, "<|bos|>" + "\n\n".join([QUESTION, *STEPS]) + "\n\n")
    with torch.inference_mode():
        labels = model(input_ids=torch.tensor([tokens])).logits[0].softmax(-1)[:, 1]
    ends, length = [], len(ids(tokenizer, f"<|bos|>{QUESTION}\n\n"))
    for step in STEPS:
        length += len(ids(tokenizer, step + "\n\n"))
        ends.append(length - 1)
    return load_reward_model(files), labels[ends]


CASES = {
    "math-shepherd": math_shepherd,
    "openr": openr,
    "rlhflow": rlhflow,
    "qwen": qwen,
    "skywork": skywork,
    "token-classification": token_classification,
}


def test_every_protocol_has_a_case():
    assert set(CASES) == set(READERS)


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    return CASES[request.param](tmp_path)


async def test_scores_are_the_direct_computation(case):
    model, expected = case
    assert expected.std() > 1e-3, "the case would not tell positions apart"
    assert await model.step_scores(QUESTION, STEPS) == pytest.approx(expected.tolist(), abs=2e-5)


async def test_a_batch_of_different_lengths_changes_nothing(case):
    """Right padding and batch mates: each input's scores are those it has alone; a prefix has the prefix's scores."""
    model, expected = case
    inputs = [STEPS, STEPS[:1], ["Something else altogether.", "And more."], STEPS[:2]]
    batched = await asyncio.gather(*(model.step_scores(QUESTION, steps) for steps in inputs))
    alone = [await model.step_scores(QUESTION, steps) for steps in inputs]
    for one, other in zip(batched, alone, strict=True):
        assert one == pytest.approx(other, abs=2e-5)
    assert batched[1] == pytest.approx(expected[:1].tolist(), abs=2e-5)
    assert batched[3] == pytest.approx(expected[:2].tolist(), abs=2e-5)


async def test_texts_that_hold_a_tag_are_scored_all_the_same(case):
    model, _ = case
    steps = ["One <extra_0> ки.", "Two +."]
    assert len(await model.step_scores(f"{QUESTION} <extra_0> ки", steps)) == 2


@pytest.mark.parametrize(
    ("protocol", "tag"),
    [("math-shepherd", "ки"), ("openr", " +"), ("openr", " \n\n\n\n\n"), ("qwen", "<extra_0>")],
)
def test_a_tag_that_is_not_one_token_is_refused(tmp_path, protocol, tag):
    *_, files = checkpoint(tmp_path, "Qwen2ForCausalLM", leave_out=[tag])
    with pytest.raises(ModelLoadError, match="tokens, where its protocol has one"):
        load_reward_model(files, protocol=protocol)


def test_a_plain_causal_model_needs_a_named_protocol(tmp_path):
    *_, files = checkpoint(tmp_path, "MistralForCausalLM")
    with pytest.raises(ModelLoadError, match="--reward-protocol"):
        load_reward_model(files)
    with pytest.raises(ModelLoadError, match=r"no weights 'score\.0\.weight'"):
        load_reward_model(files, protocol="qwen")


@contextmanager
def context_of(max_tokens=200, budget=None):
    runtime = scripted_runtime(lambda _: torch.zeros(260), ByteTokenizer())
    generation = Generation([1], stopping=StopConditions(max_tokens=max_tokens), meter=Meter(budget=budget or Budget()))
    try:
        yield SearchContext(runtime, generation, question=QUESTION)
    finally:
        runtime.close()


@pytest.fixture
def small(tmp_path):
    return token_classification(tmp_path)[0]


async def test_a_node_is_worth_its_newest_step(small):
    with context_of() as context:
        node, nodes = context.root, [context.root]
        for step in STEPS:
            node = context.append(node, ByteTokenizer().encode(step + "\n"))
            nodes.append(node)
        values = await small.values(context, nodes)
        scores = await small.step_scores(QUESTION, STEPS)
        assert values == pytest.approx([NO_STEPS, *scores], abs=2e-5)
        spend = context.generation.meter.spend
        assert spend.scorer_tokens > 3 * len(QUESTION)
        assert spend.scorer_flops > 2 * spend.scorer_tokens


async def test_the_budget_pays_for_it(small):
    with context_of(budget=Budget(forward_tokens=20)) as context:
        node = context.append(context.root, ByteTokenizer().encode(STEPS[0]))
        with pytest.raises(BudgetExhausted):
            await small.values(context, [node])
        assert context.generation.meter.exhausted == "forward_tokens"
        assert context.generation.meter.spend.scorer_tokens == 0


async def test_too_long_an_input_is_an_error_not_a_cut(small):
    with pytest.raises(RequestFailed, match="more than the 512"):
        await small.step_scores(QUESTION, ["x" * 600])
    assert len(await small.step_scores(QUESTION, STEPS)) == 3


async def test_a_fault_reaches_all_who_wait_and_no_one_after(small, monkeypatch):
    calls = iter([RuntimeError("out of memory")])
    forward = RewardModel.forward

    def failing(self, readings):
        for error in calls:
            raise error
        return forward(self, readings)

    monkeypatch.setattr(RewardModel, "forward", failing)
    results = await asyncio.gather(*(small.step_scores(QUESTION, STEPS) for _ in range(2)), return_exceptions=True)
    assert all(isinstance(result, RequestFailed) for result in results)
    assert len(await small.step_scores(QUESTION, STEPS)) == 3


async def test_a_cancelled_request_leaves_the_queue(small):
    task = asyncio.ensure_future(small.step_scores(QUESTION, STEPS))
    await asyncio.sleep(0)
    task.cancel()
    assert len(await small.step_scores(QUESTION, STEPS)) == 3
    assert task.cancelled()


async def test_a_search_with_a_reward_model(tmp_path):
    """Through the whole application: the configuration names the checkpoint, a request its kind."""
    token_classification(tmp_path)
    letters = list(range(ord("a"), ord("f")))

    def distribution(_):
        return torch.full((260,), -30.0).index_fill(0, torch.tensor(letters), 0.0)

    runtime = scripted_runtime(distribution, ByteTokenizer())
    try:
        app = create_app(runtime, load_config({"reward_model": str(tmp_path)}, {}).config)
        search = {"type": "best-of-n", "samples": 3, "trace": "full"}  # auto: no head, so the reward model
        body = {"prompt": QUESTION, "max_tokens": 9, "seed": 1, "decoding": {"search": search}}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            reply = await client.post("/v1/completions", json=body)
        assert reply.status_code == 200, reply.text
        nodes = reply.json()["trace"][0]["tree"]
        model = app.state.service.scorers["prm"]
        expected = [(await model.step_scores(QUESTION, [node["text"]]))[0] for node in nodes]
        assert len(set(expected)) == 3
        assert [node["value"] for node in nodes] == pytest.approx(expected, abs=2e-5)
        assert reply.json()["choices"][0]["text"] == max(nodes, key=lambda node: node["value"])["text"]
        spent = reply.json()["usage"]["decoding"]
        assert spent["scorer_tokens"] == sum(len(model._read(QUESTION, [node["text"]]).tokens) for node in nodes)
    finally:
        runtime.close()


def test_steps_of_an_answer_in_one_go():
    assert paragraphs("a\n\nb\nc\n \nd\n") == ["a", "b\nc", "d"]
    assert paragraphs("a\nb\n") == ["a", "b"]
    with context_of() as context:
        whole = context.append(context.root, ByteTokenizer().encode("a\n\nb\nc"))
        assert steps_of(whole) == ["a", "b\nc"]
        assert steps_of(context.append(whole, ByteTokenizer().encode("\n\n"))) == ["a\n\nb\nc"]
