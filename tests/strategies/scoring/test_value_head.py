"""The value head: its maths against numpy, its fit against a known law, its files against every kind of damage."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.scripted import ByteTokenizer
from strategies.errors import ModelLoadError
from strategies.runtime import ModelInfo
from strategies.scoring.calibration import Platt, fit_platt, logit, sigmoid
from strategies.scoring.head_training import Examples, fit_linear, train_head
from strategies.scoring.value_head import ValueHead
from strategies.scoring.value_head_file import Origin, load_head, save_head
from strategies.scoring.value_metrics import auc, calibration_error, measure

D = 6
INFO = ModelInfo(
    name="tiny",
    source="tests",
    architecture="none",
    max_model_len=8,
    vocab_size=8,
    eos_token_ids=frozenset(),
    dtype="float32",
    device="cpu",
    num_layers=1,
    hidden_size=D,
    matmul_parameters=1,
    fingerprint="x",
    config_sha256="c",
    weights_index_sha256="w",
)
TOKENIZER = ByteTokenizer()


def head(arch, rng, platt=Platt(2.0, -0.5)):  # noqa: B008 - frozen
    shapes = {"mean": (D,), "std": (D,)}
    shapes |= {"w": (1, D), "b": (1,)} if arch == "linear" else {"w1": (4, D), "b1": (4,), "w2": (1, 4), "b2": (1,)}
    tensors = {name: torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}
    tensors["std"] = tensors["std"].abs() + 0.5
    return ValueHead(arch, tensors, platt)


@pytest.mark.parametrize("arch", ["linear", "mlp"])
def test_values_are_the_formula(arch):
    rng = np.random.default_rng(1)
    one = head(arch, rng)
    t = {name: tensor.double().numpy() for name, tensor in one.tensors.items()}
    h = rng.normal(size=(5, D)).astype(np.float32)
    x = (h - t["mean"]) / t["std"]
    if arch == "linear":
        z = (x @ t["w"].T + t["b"])[:, 0]
    else:
        inner = x @ t["w1"].T + t["b1"]
        z = (inner / (1 + np.exp(-inner)) @ t["w2"].T + t["b2"])[:, 0]
    np.testing.assert_allclose(one.values(h), 1 / (1 + np.exp(-(2.0 * z - 0.5))), atol=1e-5)


def test_sigmoid_and_logit_at_the_ends():
    z = np.array([-1000.0, -2.0, 0.0, 2.0, 1000.0])
    np.testing.assert_allclose(sigmoid(z), [0, 1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-2)), 1], atol=1e-12)
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


def examples(rng, n, w, b=0.3):
    x = rng.normal(size=(n, len(w))) * 3 + 1
    y = (rng.random(n) < sigmoid((x - 1) / 3 @ w + b)).astype(np.float64)
    return Examples(x.astype(np.float32), y, np.ones(n))


def test_the_fit_is_stationary_and_finds_the_law():
    """The gradient of the penalised loss vanishes, computed here from its definition; and with many examples the
    weights are those that drew the outcomes (errors of 0.08 are over six standard errors)."""
    rng = np.random.default_rng(2)
    w = np.array([1.5, -1.0, 0.5, 0.0])
    data = examples(rng, 20_000, w)
    weights = rng.random(20_000) + 0.5
    fitted = fit_linear(replace(data, weights=weights), 0.01)
    t = {name: tensor.double().numpy() for name, tensor in fitted.tensors.items()}
    x = (data.features.astype(np.float64) - t["mean"]) / t["std"]
    residual = 0.01 * weights * (sigmoid((x @ t["w"].T + t["b"])[:, 0]) - data.outcomes)
    np.testing.assert_allclose(x.T @ residual + t["w"][0], 0, atol=2e-4)
    assert abs(residual.sum()) < 2e-4
    np.testing.assert_allclose(fit_linear(data, 1.0).tensors["w"][0].numpy(), w, atol=0.15)


@pytest.mark.parametrize("arch", ["linear", "mlp"])
def test_a_trained_head_ranks_and_is_calibrated(arch):
    rng = np.random.default_rng(3)
    w = rng.normal(size=8)
    train, dev, test = (examples(rng, n, w) for n in (2000, 500, 4000))
    trained = train_head(train, dev, [arch], seed=1)
    assert trained.uncalibrated is None
    values = trained.head.values(test.features)
    ideal = sigmoid((test.features.astype(np.float64) - 1) / 3 @ w + 0.3)
    assert auc(values, test.outcomes, test.weights) > auc(ideal, test.outcomes, test.weights) - 0.03
    assert measure(values, test.outcomes, test.weights).ece < 0.06


def test_nothing_to_learn_is_said():
    rng = np.random.default_rng(4)
    data = examples(rng, 50, np.ones(3))
    ones = replace(data, outcomes=np.ones(50))
    with pytest.raises(ValueError, match="nothing to learn"):
        train_head(ones, data, ["linear"])
    trained = train_head(data, ones, ["linear"])
    assert "same outcome" in trained.uncalibrated
    assert trained.head.platt == Platt()


def test_platt_finds_the_slope_and_refuses_a_wrong_one():
    rng = np.random.default_rng(5)
    z = rng.normal(size=50_000) * 40
    y = (rng.random(len(z)) < sigmoid(0.05 * z - 1)).astype(np.float64)
    platt = fit_platt(z, y)
    assert abs(platt.a - 0.05) < 0.004
    assert abs(platt.b + 1) < 0.1
    with pytest.raises(ValueError, match="slope"):
        fit_platt(-z, y)
    separable = fit_platt(np.array([-1.0, 1.0]), np.array([0.0, 1.0]))
    assert np.isfinite([separable.a, separable.b]).all()


def test_metrics_against_their_definitions():
    rng = np.random.default_rng(6)
    v = rng.integers(0, 12, 300) / 12  # many ties
    y = (rng.random(300) < v).astype(np.float64)
    w = rng.random(300) + 0.1
    pairs = (w[:, None] * y[:, None]) * (w * (1 - y))
    wins = (v[:, None] > v) + 0.5 * (v[:, None] == v)
    assert auc(v, y, w) == pytest.approx((pairs * wins).sum() / pairs.sum())
    assert auc(v, np.ones(300), w) is None
    found = measure(v, y, w)
    assert found.brier == pytest.approx((w * (v - y) ** 2).sum() / w.sum())
    rate = (w * y).sum() / w.sum()
    assert found.constant_brier == pytest.approx(rate * (1 - rate))
    assert measure(v[:0], y[:0], w[:0]).auc is None


def test_calibration_error_of_equal_bins():
    v = np.repeat([0.2, 0.6], 50)
    y = np.concatenate([np.repeat([1.0, 0.0], [20, 30]), np.repeat([1.0, 0.0], [30, 20])])  # shares 0.4 and 0.6
    assert calibration_error(v, y, np.ones(100), bins=2) == pytest.approx(0.1)
    order = np.random.default_rng(7).permutation(100)
    assert calibration_error(v[order], y[order], np.ones(100), bins=2) == pytest.approx(0.1)


@pytest.fixture
def saved(tmp_path):
    one = head("linear", np.random.default_rng(8))
    save_head(tmp_path, one, Origin.of(INFO, TOKENIZER), train={"questions": 1}, metrics={}, accepted=True)
    return tmp_path, one


@pytest.mark.parametrize("arch", ["linear", "mlp"])
def test_a_head_survives_its_files(tmp_path, arch):
    one = head(arch, np.random.default_rng(9))
    save_head(tmp_path, one, Origin.of(INFO, TOKENIZER), train={}, metrics={}, accepted=False)
    loaded = load_head(tmp_path, INFO, TOKENIZER)
    h = np.random.default_rng(10).normal(size=(3, D)).astype(np.float32)
    np.testing.assert_array_equal(loaded.head.values(h), one.values(h))
    assert (loaded.automatic, loaded.calibrated) == (False, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config_sha256": "other"}, "another config.json"),
        ({"weights_index_sha256": "other"}, "other weights"),
    ],
)
def test_another_model_is_refused_unless_allowed(saved, changes, words):
    folder, _ = saved
    other = replace(INFO, **changes)
    with pytest.raises(ModelLoadError, match=words):
        load_head(folder, other, TOKENIZER)
    assert load_head(folder, other, TOKENIZER, allow_mismatch=True).automatic


def test_another_tokenizer_or_template_is_refused(saved):
    folder, _ = saved

    class Templated(ByteTokenizer):
        chat_template = "{{ messages }}"

    with pytest.raises(ModelLoadError, match="another chat template"):
        load_head(folder, INFO, Templated())
    with pytest.raises(ModelLoadError, match="another tokenizer"):
        load_head(folder, INFO, ByteTokenizer([b"piece"]))


def test_another_width_is_refused_even_if_allowed(saved):
    with pytest.raises(ModelLoadError, match="hidden states of 6"):
        load_head(saved[0], replace(INFO, hidden_size=7), TOKENIZER, allow_mismatch=True)


def test_another_precision_is_no_mismatch(saved):
    assert load_head(saved[0], replace(INFO, dtype="float16"), TOKENIZER).automatic


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", 2, "format 1"),
        ("arch", "forest", "architecture"),
        ("layer", 3, "layer is 3"),
        ("norm", "none", "norm"),
        ("separator", "\n\n", "separator"),
        ("platt", {"a": -1.0, "b": 0.0}, "above 0"),
        ("platt", {"a": float("nan"), "b": 0.0}, "finite"),
        ("platt", None, "finite"),
        ("hidden_size", 5, "shape"),
        ("hidden_size", "6", "hidden_size"),
    ],
)
def test_a_wrong_description_is_refused(saved, key, value, words):
    path = saved[0] / "value_head.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: value}))
    with pytest.raises(ModelLoadError, match=words):
        load_head(saved[0], INFO, TOKENIZER)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"w": torch.full((1, D), float("inf"))}, "not finite"),
        (lambda t: t | {"w": torch.zeros(2, D)}, "shape"),
        (lambda t: t | {"w": torch.zeros(1, D, dtype=torch.float16)}, "float32"),
        (lambda t: t | {"std": torch.zeros(D)}, "std must be above 0"),
        (lambda t: t | {"extra": torch.zeros(1)}, "must hold"),
        (lambda t: {name: t[name] for name in ("mean", "std", "w")}, "must hold"),
    ],
)
def test_wrong_tensors_are_refused(saved, change, words):
    path = saved[0] / "value_head.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(ModelLoadError, match=words):
        load_head(saved[0], INFO, TOKENIZER)


def test_torn_and_missing_files_are_refused(saved):
    folder, _ = saved
    weights, description = folder / "value_head.safetensors", folder / "value_head.json"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(ModelLoadError, match="safetensors can't be read"):
        load_head(folder, INFO, TOKENIZER)
    description.write_text("{")
    with pytest.raises(ModelLoadError, match="can't be read"):
        load_head(folder, INFO, TOKENIZER)
    description.unlink()
    with pytest.raises(ModelLoadError, match="can't be read"):
        load_head(folder, INFO, TOKENIZER)
