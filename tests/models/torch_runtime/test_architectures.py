"""Every kind of architecture gives, over slots and in chunks and trees, the logits of plain transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from models.torch_runtime.batch import PackedBatch, Segment, tree_mask
from models.torch_runtime.decoder import DecoderConfig, FusedDecoder
from models.torch_runtime.kv_pool import SlotPool
from models.torch_runtime.model import ForwardModel
from models.torch_runtime.weights import load_model
from strategies.errors import ModelLoadError

CPU = torch.device("cpu")
COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,  # large enough that attention patterns matter
}
LLAMA = COMMON | {"intermediate_size": 48, "num_key_value_heads": 2}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], bool]] = {
    # name: (configuration class, its arguments, whether the fused decoder takes it)
    "llama": ("LlamaConfig", LLAMA | {"tie_word_embeddings": True}, True),
    "llama-bias": ("LlamaConfig", LLAMA | {"attention_bias": True, "num_key_value_heads": 4}, True),
    "llama3-rope": ("LlamaConfig", LLAMA | {"rope_parameters": LLAMA3_ROPE}, True),
    "linear-rope": ("LlamaConfig", LLAMA | {"rope_parameters": LINEAR_ROPE}, True),
    "qwen2": ("Qwen2Config", LLAMA, True),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 16}, True),
    "mistral": ("MistralConfig", LLAMA | {"sliding_window": None}, True),
    "mistral-window": ("MistralConfig", LLAMA | {"sliding_window": 5}, True),
    "qwen2-window": (
        "Qwen2Config",
        LLAMA | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        False,
    ),
    "gemma": ("GemmaConfig", LLAMA | {"head_dim": 16}, False),
    "gemma2": ("Gemma2Config", LLAMA | {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16}, False),
    "gemma3": ("Gemma3TextConfig", LLAMA | {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16}, False),
    "phi3": ("Phi3Config", LLAMA | {"pad_token_id": 0}, False),
    "gpt-neox": ("GPTNeoXConfig", COMMON | {"intermediate_size": 48, "rotary_pct": 0.25}, False),
    "opt": ("OPTConfig", COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32}, False),
    "gpt2": ("GPT2Config", {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}, False),
    "granite": ("GraniteConfig", LLAMA | {"logits_scaling": 3.0}, False),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """(name, folder, plain transformers model in float32) of a tiny random checkpoint."""
    kind, arguments, _ = ARCHITECTURES[request.param]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**arguments)).eval()
    for name, parameter in model.named_parameters():  # biases and norms start as constants, which would hide faults
        if parameter.dim() == 1:
            centre = 1.0 if "norm" in name and "bias" not in name and "gemma" not in request.param else 0.0
            torch.nn.init.normal_(parameter, mean=centre, std=0.2)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return request.param, folder, plain.eval()


def pool_for(model: ForwardModel, slots: int = 128) -> SlotPool:
    shape = model.shape
    return SlotPool(
        num_layers=shape.num_layers, num_slots=slots, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        dtype=shape.kv_dtype, device=CPU,
    )  # fmt: skip


def load(folder: Path, dtype: torch.dtype = torch.float32, *, fused: bool = True) -> ForwardModel:
    config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    return load_model(folder, config, dtype=dtype, device=CPU, fused=fused)


@torch.inference_mode()
def logits_of(model: ForwardModel, segments: list[Segment], pool: SlotPool) -> torch.Tensor:
    return model.logits(model.forward(PackedBatch(segments, CPU), pool))


@torch.inference_mode()
def plain_logits(plain: Any, tokens: list[int]) -> torch.Tensor:
    return plain(input_ids=torch.tensor([tokens])).logits[0].float()


def test_logits_of_packed_chunks_equal_plain_transformers(checkpoint: tuple[str, Path, Any]) -> None:
    name, folder, plain = checkpoint
    model = load(folder)
    assert isinstance(model, FusedDecoder) == ARCHITECTURES[name][2]
    pool = pool_for(model)
    rng = np.random.default_rng(1)
    sequences = [rng.integers(1, 97, n).tolist() for n in (23, 9, 16)]
    slots = [rng.permutation(pool.allocate(len(s))) for s in sequences]  # slots need not be in order
    got: list[list[torch.Tensor]] = [[], [], []]
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 23)):  # prefill, single steps, a long chunk; three sequences at once
        segments, owners = [], []
        for i, (tokens, own) in enumerate(zip(sequences, slots, strict=True)):
            if tokens[start:end]:
                segments.append(Segment.chain(tokens[start:end], own[start:end], own[:start]))
                owners.append(i)
        logits = logits_of(model, segments, pool).split([len(s.tokens) for s in segments])
        for i, part in zip(owners, logits, strict=True):
            got[i].append(part)
    for tokens, parts in zip(sequences, got, strict=True):
        torch.testing.assert_close(torch.cat(parts), plain_logits(plain, tokens), atol=1e-4, rtol=1e-4)


def test_logits_of_a_random_tree_equal_each_path_alone(checkpoint: tuple[str, Path, Any]) -> None:
    _, folder, plain = checkpoint
    model = load(folder)
    pool = pool_for(model)
    rng = np.random.default_rng(2)
    prompt = rng.integers(1, 97, 11).tolist()
    own = pool.allocate(len(prompt))
    logits_of(model, [Segment.chain(prompt, own, own[:0])], pool)
    for size in (2, 7, 20):
        parents = [int(rng.integers(-1, i)) for i in range(size)]
        tokens = rng.integers(1, 97, size)
        mask = tree_mask(parents)
        slots = pool.allocate(size)
        positions = len(prompt) + mask.sum(1) - 1
        tree = Segment(tokens, positions, slots, own, mask)
        other = Segment.chain([5], pool.allocate(1), own[:4])  # an ordinary decode in the same batch
        got = logits_of(model, [other, tree], pool)[1:]
        for i in range(size):
            path = [int(tokens[j]) for j in np.flatnonzero(mask[i])]
            alone = plain_logits(plain, prompt + path)[-1]
            assert (got[i] - alone).abs().max() <= 1e-4


def test_half_precision_weights_stay_close(checkpoint: tuple[str, Path, Any]) -> None:
    _, folder, plain = checkpoint
    model = load(folder, torch.float16)
    pool = pool_for(model)
    tokens = list(range(3, 40))
    slots = pool.allocate(len(tokens))
    got = logits_of(model, [Segment.chain(tokens, slots, slots[:0])], pool)
    expected = plain_logits(plain, tokens)
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("checkpoint", [name for name, (_, _, fused) in ARCHITECTURES.items() if fused], indirect=True)
def test_fused_and_transformers_paths_agree(checkpoint: tuple[str, Path, Any]) -> None:
    _, folder, _ = checkpoint
    tokens = list(range(20, 50))
    results = []
    for fused in (True, False):
        model = load(folder, fused=fused)
        pool = pool_for(model)
        slots = pool.allocate(len(tokens))
        results.append(logits_of(model, [Segment.chain(tokens, slots, slots[:0])], pool))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_matmul_parameters_agree_between_paths(checkpoint: tuple[str, Path, Any]) -> None:
    name, folder, plain = checkpoint
    head = plain.get_output_embeddings().weight.numel()
    body = sum(
        p.numel() for n, p in plain.base_model.named_parameters()
        if p.dim() == 2 and "embed" not in n and "wte" not in n and "wpe" not in n
    )  # fmt: skip
    assert load(folder).shape.matmul_parameters == body + head, name


def test_an_architecture_without_pluggable_attention_is_refused(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="BloomForCausalLM"):
        load(tmp_path)


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**LLAMA)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    wrong = config.to_dict() | {"intermediate_size": 64}
    with pytest.raises(ModelLoadError, match=r"gate_proj\.weight has shape \(48, 32\)"):
        load_model(tmp_path, wrong, dtype=torch.float32, device=CPU)


def test_decoder_config_refuses_what_it_can_not_compute() -> None:
    base = transformers.LlamaConfig(**LLAMA).to_dict()
    assert DecoderConfig.parse(base) is not None
    for change in (
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
    ):
        assert DecoderConfig.parse(base | change) is None, change
