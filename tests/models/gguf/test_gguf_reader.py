import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from models.gguf.reader import GGUFFile
from strategies.errors import ModelLoadError


def test_metadata_and_tensors_are_those_that_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("text", "ünï 你好 ▁")
    writer.add_bool("flag", True)
    writer.add_int32("negative", -7)
    writer.add_uint64("large", 1 << 60)
    writer.add_float64("real", 0.1)
    writer.add_array("strings", ["", "a", "你好"])
    writer.add_array("numbers", [3, 1, 2])
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    halves = np.arange(6, dtype=np.float16).reshape(2, 3)
    writer.add_tensor("matrix", matrix)
    writer.add_tensor("halves", halves)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GGUFFile(path)

    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["text"] == "ünï 你好 ▁"
    assert file.metadata["flag"] is True
    assert (file.metadata["negative"], file.metadata["large"], file.metadata["real"]) == (-7, 1 << 60, 0.1)
    assert file.metadata["strings"] == ["", "a", "你好"]
    assert file.metadata["numbers"].tolist() == [3, 1, 2]
    assert file.tensors["matrix"].shape == (3, 4)
    assert np.array_equal(file.raw(file.tensors["matrix"], 16).view(np.float32), matrix)
    assert np.array_equal(file.raw(file.tensors["halves"], 6).view(np.float16), halves)


def test_every_truncation_of_the_header_is_one_clear_line(write_gguf: Callable[..., Path], tmp_path: Path) -> None:
    data = write_gguf().read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [0, 3, 4, 7, 8, 20, 24, 30, 100, len(data) // 2, len(data) - 64]:
        cut.write_bytes(data[:length])
        with pytest.raises(ModelLoadError) as error:
            GGUFFile(cut)
        assert "\n" not in str(error.value)
        assert "cut.gguf" in str(error.value)


def test_absurd_counts_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "absurd.gguf"
    key = struct.pack("<Q", 1) + b"k"
    strings = struct.pack("<IIQ", 9, 8, 1 << 60)
    numbers = struct.pack("<IIQ", 9, 4, 1 << 60)
    for value in (strings, numbers):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + value)
        with pytest.raises(ModelLoadError, match="corrupt or truncated"):
            GGUFFile(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0))
    with pytest.raises(ModelLoadError, match="corrupt or truncated"):
        GGUFFile(path)


def test_other_formats_and_versions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        GGUFFile(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(ModelLoadError, match="version 1 is not supported"):
        GGUFFile(path)
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(ModelLoadError, match="big-endian"):
        GGUFFile(path)
    with pytest.raises(ModelLoadError, match="can't be read"):
        GGUFFile(tmp_path / "absent.gguf")
