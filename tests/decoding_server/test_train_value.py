"""`train-value` end to end on the embedded model: cut off, resumed, the same as in one go, and served."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from runtime_server import serve_runtime

from decoding_server.cli import main
from decoding_server.config import load_config
from decoding_server.value_training.calibration import calibrate, write_calibration
from decoding_server.value_training.dataset import prefixes, split
from decoding_server.value_training.questions import QuestionsError, ordered, read_questions
from decoding_server.value_training.report import faults, selection
from decoding_server.value_training.rollout_store import QuestionRollouts, Rollout, RolloutStore, StoreError
from models.loading import resolve
from models.tokenizer import load_tokenizer
from models.torch_runtime.load import EngineOptions, load_runtime
from strategies.scoring.answers import extract
from strategies.scoring.calibration import Platt, read_calibration
from strategies.scoring.step_ends import step_ends
from strategies.scoring.value_head import HeadValue
from strategies.scoring.value_head_file import load_head
from strategies.search.context import NEWLINE

QUESTIONS = [
    # Half of the answers are wrong on purpose: there must be both outcomes.
    {"question": "What is 2+2?", "answer": "Two and two.\n#### 4"},
    {"question": "What is 3+4?", "answer": "#### 7"},
    {"question": "What is 5+1?", "answer": "6"},
    {"question": "What is 10-3?", "answer": "#### 1,099"},
    {"question": "What is 6+6?", "answer": "#### 98"},
    {"question": "What is 1+1?", "answer": "#### 97"},
]
PROMPT = "{question} Reply with the number alone."
ARGUMENTS = ("--rollouts", "2", "--max-tokens", "32", "--temperature", "0.7", "--prompt", PROMPT, "--seed", "3")


@pytest.fixture(scope="module")
def questions_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)) + "\n")
    return path


def train(questions_file, output, *more):
    return main(["train-value", str(questions_file), "--output", str(output), *ARGUMENTS, *more])


@pytest.fixture(scope="module")
def trained(questions_file, tmp_path_factory):
    """The output of a training in one go."""
    output = tmp_path_factory.mktemp("head")
    command = [sys.executable, "-m", "decoding_server", "train-value", str(questions_file), "--output", str(output)]
    done = subprocess.run([*command, *ARGUMENTS], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "6/6 questions" in done.stdout
    assert "best@2 by value" in done.stdout
    return output


def rows_of(output):
    return [json.loads(line) for line in (output / "rollouts.jsonl").read_text().splitlines()]


def test_rows_are_labelled_solutions(trained):
    rows = rows_of(trained)
    gold = {question.qid: question.gold for question in read_questions_of(QUESTIONS, trained)}
    assert {row["qid"]: row["gold"] for row in rows} == gold
    assert set(gold.values()) == {"4", "7", "6", "1099", "98", "97"}
    tokenizer = load_tokenizer(resolve(None).folder)
    outcomes = []
    for row in rows:
        for rollout in row["rollouts"]:
            tokens = rollout["token_ids"]
            assert rollout["step_ends"] == step_ends(tokens, tokenizer, NEWLINE)
            assert rollout["answer_key"] == extract(tokenizer.decode(tokens)).canonical
            finished = tokens[-1] in tokenizer.eos_token_ids
            assert rollout["finish_reason"] == ("stop" if finished else "length")
            assert rollout["correct"] == (finished and rollout["answer_key"] == row["gold"])
            outcomes.append(rollout["correct"])
    assert len(outcomes) == 12
    assert set(outcomes) == {True, False}


def read_questions_of(entries, folder):
    path = folder / "again.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)))
    return read_questions(path)


def test_the_head_says_where_it_is_from(trained):
    content = json.loads((trained / "value_head.json").read_text())
    assert (content["format"], content["arch"], content["hidden_size"]) == (1, "linear", 576)
    assert content["train"]["questions"] == 6
    assert content["train"]["prompt"] == PROMPT
    assert content["metrics"]["overall"]["n"] > 0
    assert content["accepted"] is False, "two test solutions can't pass"


def test_resumed_after_a_cut_it_is_the_same(trained, questions_file, tmp_path, capsys):
    """Stopped by the clock, then by a signal, then torn in both files in the middle of a write, then finished."""
    assert train(questions_file, tmp_path, "--batch", "2", "--time-limit", "0.000001") == 3
    command = [sys.executable, "-m", "decoding_server", "train-value", str(questions_file), "--output", str(tmp_path)]
    process = subprocess.Popen([*command, *ARGUMENTS, "--batch", "2"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (tmp_path / "rollouts.jsonl").read_bytes().count(b"\n") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 3
    lines = (tmp_path / "rollouts.jsonl").read_bytes()
    assert 2 <= lines.count(b"\n") < 6
    (tmp_path / "rollouts.jsonl").write_bytes(lines + lines.splitlines()[0][:40])
    features = (tmp_path / "features.f16").read_bytes()
    (tmp_path / "features.f16").write_bytes(features + b"torn")
    assert train(questions_file, tmp_path, "--batch", "2") == 0
    assert "6/6 questions" in capsys.readouterr().out
    resumed = {row["qid"]: row for row in rows_of(tmp_path)}
    assert len(rows_of(tmp_path)) == len(resumed) == 6
    assert (tmp_path / "rollouts.jsonl").read_bytes().startswith(lines)
    # Noise is a function of seed, question and position, so the batch plays no part but for floating-point near-ties.
    same = [resumed[row["qid"]] == row for row in rows_of(trained)]
    assert sum(same) >= 5
    ours, theirs = stored(tmp_path), stored(trained)
    for row, equal in zip(rows_of(trained), same, strict=True):
        if equal:  # half precision, and another batch
            np.testing.assert_allclose(ours[row["qid"]], theirs[row["qid"]], rtol=0.02, atol=0.1)


def test_features_are_what_a_search_reads(trained):
    """The stored states are those of the whole text, computed from nothing: half precision is the difference."""
    import torch
    import transformers

    folder = resolve(None).folder
    row = next(row for row in rows_of(trained))
    store = stored(trained)
    states = store[row["qid"]]
    tokenizer = load_tokenizer(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = next(q for q in read_questions_of(QUESTIONS, trained) if q.qid == row["qid"])
    rendered = tokenizer.render_chat([{"role": "user", "content": PROMPT.replace("{question}", question.text)}])
    prompt = tokenizer.encode(rendered, add_special_tokens=False)
    tokens, ends = row["rollouts"][0]["token_ids"], row["rollouts"][0]["step_ends"]
    with torch.inference_mode():
        hidden = model.model(torch.tensor([[*prompt, *tokens]])).last_hidden_state[0].numpy()
    expected = hidden[[len(prompt) - 1, *(len(prompt) + end - 1 for end in ends)]]
    np.testing.assert_allclose(states[: len(expected)], expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def stored(output):
    settings = json.loads((output / "rollouts.json").read_text())
    with RolloutStore(output, settings, 576) as store:
        return store.features()


def test_other_settings_are_refused(trained, questions_file, capsys):
    assert train(questions_file, trained, "--temperature", "0.9") == 1
    assert "another temperature (0.7, now 0.9)" in capsys.readouterr().err


def test_a_search_with_the_head(trained):
    """Over HTTP: the trace has the head's own values of each node's last state, and the best one is the answer."""
    files = resolve(None)
    runtime = load_runtime(files, EngineOptions(max_model_len=512, max_num_seqs=8))
    with serve_runtime(runtime, {"value_head": str(trained)}) as server:
        search = {"type": "best-of-n", "samples": 3, "value": "head", "trace": "full"}
        messages = [{"role": "user", "content": "What is 2+2?"}]
        body = {"messages": messages, "max_tokens": 24, "seed": 4, "decoding": {"search": search}}
        reply = server.post("/v1/chat/completions", body)
        assert reply.status_code == 200, reply.text
        nodes = reply.json()["trace"][0]["tree"]
        values = [node["value"] for node in nodes]
        assert all(0 < value < 1 for value in values)
        assert len(set(values)) > 1
        best = max(nodes, key=lambda node: (node["finished"], node["value"]))
        assert reply.json()["choices"][0]["message"]["content"] == best["text"]
        spent = reply.json()["usage"]["decoding"]
        assert spent["scorer_calls"] == 3
        # Each answer computes the prompt's last token again and never its own last one; a value computes that.
        prompt = reply.json()["usage"]["prompt_tokens"]
        assert spent["target_tokens"] == prompt + spent["output_tokens"] + 3
        listed = {value["id"]: value for value in server.client().get("/strategies", cast_to=dict)["values"]}
        assert listed["head"] == {"id": "head", "calibrated": True, "automatic": False}
        auto = {**body, "decoding": {"search": {**search, "value": "auto", "trace": "none"}}}
        spent = server.post("/v1/chat/completions", auto).json()["usage"]["decoding"]
        assert spent["output_tokens"] > sum(node["tokens"] for node in nodes), "self-evaluation: it was not accepted"


def test_the_served_head_is_that_of_the_files(trained):
    runtime = load_runtime(resolve(None), EngineOptions(max_model_len=64, max_num_seqs=2))
    try:
        served = load_head(trained, runtime.info, runtime.tokenizer)
        assert isinstance(served, HeadValue)
        states = np.concatenate(list(stored(trained).values()))
        t = {name: tensor.double().numpy() for name, tensor in served.head.tensors.items()}
        z = ((states - t["mean"]) / t["std"]) @ t["w"][0] + t["b"]
        platt = json.loads((trained / "value_head.json").read_text())["platt"]
        expected = 1 / (1 + np.exp(-(platt["a"] * z + platt["b"])))
        np.testing.assert_allclose(served.head.values(states), expected, atol=1e-5)
        assert served.head.platt == Platt(platt["a"], platt["b"])
    finally:
        runtime.close()


def test_a_calibration_of_self_evaluation(trained, questions_file, tmp_path, capsys):
    """From the solutions that are there; its file is what the server reads."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    before = (copy / "rollouts.jsonl").read_bytes()
    code = train(questions_file, copy, "--calibrate", "self-eval", "--held-out", "0.3")
    assert (copy / "rollouts.jsonl").read_bytes() == before
    written = copy / "calibration-self-eval.json"
    if code == 1:  # a model of 135M may well value wrong answers above right ones
        assert "the fitted slope is" in capsys.readouterr().err
        assert not written.exists()
    else:
        kind, model, platt = read_calibration(written)
        assert (code, kind, model) == (0, "self-eval", "smollm2-135m-instruct")
        assert platt.a > 0
    assert train(questions_file, copy, "--calibrate", "http") == 2
    assert "--verifier-url" in capsys.readouterr().err


def test_a_calibration_is_fitted_to_the_values(tmp_path):
    """Right solutions are valued above wrong ones, too low on the whole; the written scaling mends that."""
    rng = np.random.default_rng(1)
    rows, values = [], {}
    for i in range(400):
        outcomes = [bool(right) for right in rng.random(4) < 0.5]
        rows.append(row(f"q{i}", outcomes, steps=1))
        logits = np.array([0.0, *(2 * np.array(outcomes) - 1 + rng.normal(size=4))])
        values[f"q{i}"] = (1 / (1 + np.exp(2 - logits))).astype(np.float32)[:, None]
    platt, metrics = calibrate(values, split(rows, 0.25, 0))
    # Two normal distributions of variance 1 with means 1 and -1 have a log ratio of 2 z: behind v = sigmoid(z - 2),
    # that is 2 (logit(v) + 2). Roots, which say nothing, pull the slope down a little.
    assert 1.3 < platt.a < 2.3
    assert metrics["finished"]["auc"] > 0.88
    assert metrics["finished"]["ece"] < 0.12
    path = tmp_path / "calibration.json"
    write_calibration(path, "prm", "m", platt, metrics)
    assert read_calibration(path) == ("prm", "m", platt)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no questions"),
        ('{"question": "a"}', "line 1"),
        ('{"question": "a", "answer": "1"}\nx', "line 2"),
        ('{"question": " ", "answer": "1"}', "empty"),
        ('{"question": "a", "answer": ""}', "empty"),
        ("[1]", "line 1"),
    ],
)
def test_unusable_questions(tmp_path, text, words):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(QuestionsError, match=words):
        read_questions(path)


def test_numbers_and_repetitions(tmp_path):
    entries = [
        {"question": "a", "answer": 12},
        {"question": "a", "answer": "13"},
        {"question": "b", "answer": "x\n#### -1,200"},
    ]
    assert [question.gold for question in read_questions_of(entries, tmp_path)] == ["12", "-1200"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", "no mark"), "{question}"),
        (("--temperature", "3"), "--temperature"),
        (("--dtype", "int4"), "dtype"),
    ],
)
def test_wrong_flags(questions_file, tmp_path, capsys, arguments, words):
    assert main(["train-value", str(questions_file), "--output", str(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train-value", str(questions_file), "--output", str(tmp_path), "--held-out", "0.5"])


def test_serve_flags_reach_the_configuration():
    assert load_config({"value_calibration": "a,b"}).config.value_calibration == ["a", "b"]


# -- without a model ---------------------------------------------------------------------------------------------------


def row(qid, outcomes, answers=None, steps=2, finish="stop"):
    answers = answers or ["1" if right else "0" for right in outcomes]
    return QuestionRollouts(
        qid,
        "1",
        [Rollout([7] * 4, [*range(1, steps), 4], finish, a, o) for a, o in zip(answers, outcomes, strict=True)],
    )


def test_a_store_in_use_and_a_damaged_one(tmp_path):
    one = row("a", [True, False])
    features = np.arange(one.num_features * 3, dtype=np.float32).reshape(-1, 3)
    with RolloutStore(tmp_path, {"seed": 1}, 3) as store:
        store.append(one, features)
        with pytest.raises(StoreError, match="another process"):
            RolloutStore(tmp_path, {"seed": 1}, 3)
        with pytest.raises(ValueError, match="features"):
            store.append(one, features[:-1])
    with RolloutStore(tmp_path, {"seed": 1}, 3) as store:
        assert store.rows == [one]
        np.testing.assert_array_equal(store.features()["a"], features)
    (tmp_path / "features.f16").write_bytes(b"12")
    with pytest.raises(StoreError, match="shorter"):
        RolloutStore(tmp_path, {"seed": 1}, 3)
    (tmp_path / "rollouts.jsonl").write_text("{}\n")
    with pytest.raises(StoreError, match="damaged"):
        RolloutStore(tmp_path, {"seed": 1}, 3)


def test_prefixes_and_their_weights():
    rows = [row("a", [True, False], steps=2), row("b", [True], steps=4)]
    features = {one.qid: np.arange(one.num_features, dtype=np.float32)[:, None] + 10 * i for i, one in enumerate(rows)}
    found = prefixes(rows, features)
    assert found.features[:, 0].tolist() == [0, 1, 2, 0, 3, 4, 10, 11, 12, 13, 14]
    assert found.outcomes.tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(found.weights, [1 / 3] * 6 + [1 / 5] * 5)
    assert found.position.tolist() == [0, 0.5, 1, 0, 0.5, 1, 0, 0.25, 0.5, 0.75, 1]
    assert np.flatnonzero(found.finished).tolist() == np.flatnonzero(found.last).tolist() == [2, 5, 10]


def test_questions_are_split_by_their_hash():
    rows = [row(f"q{i}", [True]) for i in range(50)]
    parts = split(rows, 0.1, seed=1)
    ids = [[one.qid for one in part] for part in (parts.train, parts.dev, parts.test)]
    assert [len(part) for part in ids] == [40, 5, 5]
    assert len({qid for part in ids for qid in part}) == 50
    again = split(rows[::-1], 0.1, seed=1)
    assert [[one.qid for one in part] for part in (again.train, again.dev, again.test)] == ids
    assert ordered([f"q{i}" for i in range(50)], 2) != ordered([f"q{i}" for i in range(50)], 1)
    assert [len(part) for part in vars_of(split(rows[:3], 0.1, 0))] == [1, 1, 1]
    with pytest.raises(ValueError, match="at least three"):
        split([*rows[:2], QuestionRollouts("empty", "1", [])], 0.1, 0)


def vars_of(parts):
    return parts.train, parts.dev, parts.test


def test_selection_counts_questions():
    rows = [
        row("a", [True, False, False], ["1", "0", "0"]),  # the value finds it, the majority does not
        row("b", [True, True, False]),  # both
        row("c", [False, False, False], ["1", "1", "1"], finish="length"),  # cut off: no answers
    ]
    found = selection(np.array([0.9, 0.1, 0.2, 0.1, 0.8, 0.3, 0.9, 0.9, 0.9]), rows)
    assert (found["best"], found["majority"], found["any"]) == (2 / 3, 1 / 3, 2 / 3)
    assert found["mean"] == pytest.approx((1 / 3 + 2 / 3) / 3)


def figures(finished=0.8, overall=0.7, ece=0.05, best=0.5, mean=0.4):
    return {
        "finished": {"auc": finished},
        "overall": {"auc": overall, "ece": ece},
        "selection": {"best": best, "mean": mean},
    }


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"finished": 0.74}, "finished AUC"),
        ({"overall": 0.64}, "overall AUC"),
        ({"ece": 0.09}, "ECE"),
        ({"best": 0.39}, "best@R"),
        ({"finished": None}, "undefined"),
    ],
)
def test_the_rule_of_acceptance(changes, word):
    assert faults(figures(), None) == []
    (fault,) = faults(figures(**changes), None)
    assert word in fault
    assert faults(figures(), "why not") == ["not calibrated: why not"]
