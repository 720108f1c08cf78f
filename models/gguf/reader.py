"""Reads the container of a GGUF file (version 2 or 3, little-endian): metadata, tensor directory, mapped tensor bytes.

Layout: magic, version, counts, key-value pairs, tensor directory, padding, data (ggml's docs/gguf.md). Numbers are
unpacked straight from the mapped file, so a vocabulary of 150,000 strings takes a fraction of a second.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.errors import ModelLoadError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 8

STRING = 8
ARRAY = 9
# Metadata value type -> numpy code; 7 is a boolean in one byte.
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of the directory. shape: row-major (GGUF lists the fastest dimension first). offset: bytes from the
    start of the file. type: ggml's number of the element type."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class GGUFFile:
    """An open GGUF file.

    metadata: key -> bool, int, float, str, list of str (or of lists), or a numpy array for arrays of numbers.
    tensors: name -> TensorInfo. Raises ModelLoadError when the file can't be read, is no GGUF file, or ends too early.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as fault:  # an empty file can't be mapped
            raise ModelLoadError(f"{path}: can't be read ({fault}); check the path and the permissions") from fault
        self._position = 0
        try:
            self._read_header()
        except (struct.error, ValueError, IndexError, OverflowError, MemoryError, RecursionError) as fault:
            raise self.corrupt(str(fault) or type(fault).__name__) from fault

    def corrupt(self, detail: str) -> ModelLoadError:
        """The error for contents that contradict the format."""
        return ModelLoadError(f"{self.path}: corrupt or truncated GGUF file ({detail}); download it again")

    def raw(self, info: TensorInfo, bytes_per_row: int) -> NDArray[np.uint8]:
        """The mapped bytes of a tensor, uint8 [rows, bytes_per_row]; a vector has one row. Nothing is copied."""
        rows = prod(info.shape[:-1])
        size = rows * bytes_per_row
        if info.offset + size > len(self._map):
            raise self.corrupt(f"tensor {info.name} lies beyond the end of the file")
        return np.frombuffer(self._map, np.uint8, size, info.offset).reshape(rows, bytes_per_row)

    def _read_header(self) -> None:
        if self._map[:4] != MAGIC:
            raise ModelLoadError(f"{self.path}: not a GGUF file; pass a GGUF file, a model folder or a hub id")
        self._position = 4
        version = self._number("<I")
        if version not in VERSIONS:
            shown = f"version {version}" if version < 1 << 16 else "big-endian"
            raise ModelLoadError(f"{self.path}: GGUF {shown} is not supported; convert it to little-endian version 3")
        tensor_count, pair_count = self._number("<Q"), self._number("<Q")
        for _ in range(pair_count):
            key = self._string()
            self.metadata[key] = self._value(self._number("<I"))
        entries = [self._entry() for _ in range(tensor_count)]
        alignment = int(self.metadata.get("general.alignment", DEFAULT_ALIGNMENT))
        if alignment < 1:
            raise ValueError(f"alignment {alignment}")
        start = -(-self._position // alignment) * alignment
        for name, shape, kind, offset in entries:
            self.tensors[name] = TensorInfo(name, shape, kind, start + offset)

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        if any(length > len(self._map) * 64 for length in shape):  # no type packs more than 64 values in a byte
            raise ValueError(f"tensor {name} has shape {shape}")
        return name, shape, self._number("<I"), self._number("<Q")

    def _number(self, code: str) -> int:
        (value,) = struct.unpack_from(code, self._map, self._position)
        self._position += struct.calcsize(code)
        return int(value)

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        """`count` strings, each a 64-bit length and UTF-8 bytes. The inner loop of opening a file: kept tight."""
        data, position, length_of, found = self._map, self._position, struct.Struct("<Q").unpack_from, []
        end = len(data)
        for _ in range(count):
            start = position + 8
            position = start + length_of(data, position)[0]
            if position > end:
                raise ValueError("a string reaches beyond the end")
            found.append(data[start:position].decode("utf-8"))
        self._position = position
        return found

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array(self._number("<I"), self._number("<Q"))
        return self._numbers(kind, 1)[0].item()

    def _array(self, kind: int, count: int) -> Any:
        if kind == STRING:
            return self._strings(count)
        if kind == ARRAY:
            return [self._array(self._number("<I"), self._number("<Q")) for _ in range(count)]
        return self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> NDArray[Any]:
        if kind not in NUMBERS:
            raise ValueError(f"unknown value type {kind}")
        dtype = np.dtype(NUMBERS[kind])
        if count * dtype.itemsize > len(self._map) - self._position:
            raise ValueError("an array reaches beyond the end")
        values = np.frombuffer(self._map, dtype, count, self._position)
        self._position += values.nbytes
        return values
