"""lm-evaluation-harness, models `local-completions` and `local-chat-completions`, on small tasks of our own.

Every log-likelihood must be what transformers computes directly in fp32, and every "is it the greedy answer" flag
too: they decide the harness's scores, and a server that gets them wrong scores at chance.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers
from running_server import Server

NEW_TOKENS = 24
TOLERANCE = 1e-3  # in a sum of log-probabilities, natural logarithm
QUESTIONS = (
    ("The capital of France is", (" Paris", " Berlin", " a small town in the Alps"), 0),
    ("Two plus two equals", (" five.", " four."), 1),
    ("The opposite of hot is", (" cold", " kettle", " very hot"), 0),
    ("Water freezes at zero degrees", (" Celsius", " Fahrenheit and nothing else"), 0),
    ("Bonjour means hello, and ‘東京’ is", (" 東京タワー", " the city of Tokyo", " 🦜🦜"), 1),
    ("for i in range(3):\n    ", ("print(i)", "}{"), 0),
)
ROLLED = "The lighthouse stood on the cliff for two hundred years – naïve sailors called it “the old candle” 🕯."
PROMPTS = ("One, two, three, four, five, six,", "Roses are red,\nviolets are", "Q: What is the capital of France?\nA:")
ASKED = ("What is the capital of France?", "Name a fruit.")


class Reference:
    """The untouched model, in fp32."""

    def __init__(self, server: Server) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(server.folder)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(server.folder, dtype=torch.float32)
        self.model = loaded.eval()

    @torch.inference_mode()
    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Log-likelihood of the continuation, and whether every one of its tokens is the likeliest."""
        tokens = torch.tensor([context + continuation])
        logprobs = self.model(tokens).logits[0, len(context) - 1 : -1].log_softmax(-1)
        wanted = torch.tensor(continuation)
        total = float(logprobs[torch.arange(len(continuation)), wanted].double().sum())
        return total, bool((logprobs.argmax(-1) == wanted).all())

    def likelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """As the harness splits: the continuation's tokens are those after the context's; its leading space, if the
        context ends in one, belongs to the continuation."""
        stripped = context.rstrip()
        whole: list[int] = self.tokenizer(context + continuation).input_ids
        length = len(self.tokenizer(stripped).input_ids)
        return self.score(whole[:length], whole[length:])

    @torch.inference_mode()
    def greedy(self, tokens: list[int], new_tokens: int, stop: str) -> str:
        """The text up to the stop string or the end of the sequence."""
        prompt = torch.tensor([tokens])
        output = self.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new_tokens
        )
        text: str = self.tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True)
        return text.partition(stop)[0]


@pytest.fixture(scope="module")
def reference(server: Server) -> Reference:
    return Reference(server)


@pytest.fixture(scope="module")
def expected(reference: Reference) -> list[list[tuple[float, bool]]]:
    """For every question and choice."""
    return [[reference.likelihood(question, choice) for choice in choices] for question, choices, _ in QUESTIONS]


@pytest.fixture(scope="module")
def continuations(reference: Reference) -> list[str]:
    """Of every prompt, as far as the task lets it go."""
    return [reference.greedy(reference.tokenizer(prompt).input_ids, NEW_TOKENS, "\n") for prompt in PROMPTS]


@pytest.fixture(scope="module")
def evaluate(client_package: Callable[[str], Any]) -> Callable[..., Any]:
    """evaluate(model, model_args, task, ...): results of `simple_evaluate` for one task given as a dictionary."""
    simple_evaluate = client_package("lm_eval").simple_evaluate
    tasks = client_package("lm_eval.tasks").TaskManager(include_defaults=False)  # not the index of 10,000 hub tasks

    def evaluate(model: str, arguments: Mapping[str, Any], task: Mapping[str, Any], **options: Any) -> Any:
        return simple_evaluate(
            model=model,
            model_args=dict(arguments),
            tasks=[dict(task)],
            task_manager=tasks,
            bootstrap_iters=0,
            log_samples=True,
            **options,
        )

    return evaluate


def with_local_tokenizer(server: Server) -> dict[str, Any]:
    return {
        "model": server.model,
        "base_url": f"{server.base_url}/completions",
        "tokenizer": str(server.folder),
        "tokenizer_backend": "huggingface",
        "max_retries": 1,
    }


def rows(client_package: Callable[[str], Any], records: list[dict[str, Any]]) -> Callable[..., Any]:
    """The harness's hook for data that comes from no hub."""
    datasets = client_package("datasets")
    return lambda **_: {"test": datasets.Dataset.from_list(records)}


@pytest.fixture(scope="module")
def multiple_choice(client_package: Callable[[str], Any]) -> dict[str, Any]:
    return {
        "task": "six_questions",
        "custom_dataset": rows(
            client_package,
            [
                {"question": question, "choices": list(choices), "answer": answer}
                for question, choices, answer in QUESTIONS
            ],
        ),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }


@pytest.mark.parametrize(
    ("batch_size", "options"),
    [
        (1, {}),
        (4, {}),
        (4, {"num_concurrent": 3}),
        (1, {"tokenized_requests": False}),
    ],
    ids=["one by one", "batches", "concurrent batches", "as text"],
)
def test_loglikelihoods_equal_a_direct_computation(
    server: Server,
    expected: list[list[tuple[float, bool]]],
    evaluate: Callable[..., Any],
    multiple_choice: dict[str, Any],
    batch_size: int,
    options: dict[str, Any],
) -> None:
    arguments = with_local_tokenizer(server) | options
    result = evaluate("local-completions", arguments, multiple_choice, batch_size=batch_size)
    check_multiple_choice(result, expected)


def check_multiple_choice(result: Any, expected: list[list[tuple[float, bool]]]) -> None:
    samples = sorted(result["samples"]["six_questions"], key=lambda sample: sample["doc_id"])
    got = [[(float(value), bool(greedy)) for value, greedy in sample["filtered_resps"]] for sample in samples]
    assert [[greedy for _, greedy in scores] for scores in got] == [[greedy for _, greedy in s] for s in expected]
    assert {greedy for scores in expected for _, greedy in scores} == {True, False}  # or that shows nothing
    for seen, wanted in zip(got, expected, strict=True):
        for (value, _), (direct, _) in zip(seen, wanted, strict=True):
            assert abs(value - direct) < TOLERANCE, (seen, wanted)
    right = sum(scores.index(max(scores)) == answer for scores, (_, _, answer) in zip(expected, QUESTIONS, strict=True))
    assert result["results"]["six_questions"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
    assert right >= 4  # the model is small, not ignorant: chance is 2.7


def test_the_remote_tokenizer_gives_the_same_loglikelihoods(
    server: Server,
    expected: list[list[tuple[float, bool]]],
    evaluate: Callable[..., Any],
    multiple_choice: dict[str, Any],
) -> None:
    """The harness asks the server itself to tokenize: /tokenizer_info, /tokenize, /detokenize."""
    arguments: dict[str, Any] = {"model": server.model, "base_url": f"{server.base_url}/completions", "max_retries": 1}
    arguments |= {"tokenizer_backend": "remote", "auth_token": server.api_key}
    check_multiple_choice(evaluate("local-completions", arguments, multiple_choice, batch_size=4), expected)


def test_rolling_loglikelihood_of_a_text_equals_a_direct_computation(
    server: Server, reference: Reference, evaluate: Callable[..., Any], client_package: Callable[[str], Any]
) -> None:
    task = {
        "task": "one_text",
        "custom_dataset": rows(client_package, [{"text": ROLLED}]),
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    arguments = with_local_tokenizer(server)
    result = evaluate("local-completions", arguments, task)
    tokens = reference.tokenizer(ROLLED).input_ids
    expected, _ = reference.score([reference.tokenizer.bos_token_id], tokens)
    (sample,) = result["samples"]["one_text"]
    assert abs(float(sample["resps"][0][0]) - expected) < TOLERANCE


def generation_task(client_package: Callable[[str], Any], prompts: tuple[str, ...], until: str) -> dict[str, Any]:
    return {
        "task": "continue",
        "custom_dataset": rows(client_package, [{"prompt": prompt, "target": ""} for prompt in prompts]),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "generation_kwargs": {"until": [until], "max_gen_toks": NEW_TOKENS, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }


@pytest.mark.parametrize("options", [{}, {"num_concurrent": 3}], ids=["batches", "concurrent batches"])
def test_generate_until_gives_the_greedy_text_up_to_the_stop_string(
    server: Server,
    continuations: list[str],
    evaluate: Callable[..., Any],
    client_package: Callable[[str], Any],
    options: dict[str, Any],
) -> None:
    arguments = with_local_tokenizer(server) | options
    result = evaluate("local-completions", arguments, generation_task(client_package, PROMPTS, "\n"), batch_size=2)
    samples = sorted(result["samples"]["continue"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in samples] == continuations
    assert " seven" in continuations[0]


def test_chat_generate_until_gives_the_greedy_answer(
    server: Server, reference: Reference, evaluate: Callable[..., Any], client_package: Callable[[str], Any]
) -> None:
    arguments: dict[str, Any] = {
        "model": server.model,
        "base_url": f"{server.base_url}/chat/completions",
        "max_retries": 1,
    }
    task = generation_task(client_package, ASKED, ".")
    result = evaluate("local-chat-completions", arguments, task, apply_chat_template=True)
    samples = sorted(result["samples"]["continue"], key=lambda sample: sample["doc_id"])
    assert [sample["doc"]["prompt"] for sample in samples] == list(ASKED)
    expected = []
    for question in ASKED:
        tokens = reference.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        expected.append(reference.greedy(tokens, NEW_TOKENS, "."))
    assert [sample["resps"][0][0] for sample in samples] == expected
    assert "Paris" in expected[0]
