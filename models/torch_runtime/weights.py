"""From a folder of weights to a model that the engine can run."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.torch_runtime import native
from models.torch_runtime.decoder import DecoderConfig, FusedDecoder
from models.torch_runtime.linear import default_kernel
from models.torch_runtime.model import ForwardModel
from strategies.errors import ModelLoadError


class SafetensorsFolder(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors files by name, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelLoadError(f"{folder} holds no .safetensors weights")
        try:
            self._files: list[Any] = [safe_open(file, framework="pt") for file in files]
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"the weights in {folder} can't be read ({error}); fetch the model again") from error
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 - not a dict

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def load_model(
    folder: Path, config: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device, fused: bool = True
) -> ForwardModel:
    """The fused decoder where the architecture allows it, else the model through transformers."""
    kernel = default_kernel(dtype, device)
    parsed = DecoderConfig.parse(config) if fused else None
    if parsed is None:
        from models.torch_runtime.transformers_model import TransformersModel  # imports transformers: seconds

        return TransformersModel(folder, kernel=kernel, dtype=dtype, device=device)
    try:
        return FusedDecoder(
            parsed, SafetensorsFolder(folder), kernel=kernel, kernels=kernels_for(device), dtype=dtype, device=device
        )
    except (KeyError, ValueError, SafetensorError) as error:
        raise ModelLoadError(f"the weights in {folder} don't fit its config.json: {error}") from error


@functools.cache
def kernels_for(device: torch.device) -> native.Kernels:
    return (native.load() if device.type == "cpu" else None) or native.TorchKernels()


def draw_with(kernels: native.Kernels) -> Callable[[Tensor, Tensor], Tensor]:
    """The kernel that samples, as the pipeline calls it."""

    def draw(logits: Tensor, keys: Tensor) -> Tensor:
        tokens = torch.empty(len(keys), dtype=torch.int64, device=logits.device)
        kernels.gumbel_argmax(logits, keys, tokens)
        return tokens

    return draw
