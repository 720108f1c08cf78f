"""Linear layers through the fastest kernel that gives the reference's logits.

On AVX2 CPUs a plain fp32 `F.linear` costs two to five times more for 2-8 rows than for one, which is what batching and
draft verification are made of. Measured alternatives: fbgemm's packed 16-bit weights with fp32 activations (half the
memory traffic), and oneDNN's prepacked fp32 weights.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

LinearKernel = Literal["fbgemm-fp16", "onednn-fp32", "torch"]
Linear = Callable[[Tensor], Tensor]
"""[T, in_features] -> [T, out_features]"""

FP16_MAX = 65504.0


def default_kernel(dtype: torch.dtype, device: torch.device) -> LinearKernel:
    """The kernel for weights of `dtype` on `device`."""
    if device.type != "cpu":
        return "torch"
    if dtype == torch.float16 and "fbgemm" in torch.backends.quantized.supported_engines:
        return "fbgemm-fp16"
    prepacks = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return "onednn-fp32" if prepacks else "torch"


def pack_linear(weight: Tensor, bias: Tensor | None, kernel: LinearKernel) -> Linear:
    """A function that computes x @ weight.T + bias. weight: [out_features, in_features]; CPU kernels take fp32 x.

    Weights that fp16 can't hold fall back from fbgemm-fp16 to onednn-fp32.
    """
    if kernel == "fbgemm-fp16":
        if weight.dtype != torch.float16 and float(weight.abs().amax()) > FP16_MAX:
            return pack_linear(weight, bias, "onednn-fp32")
        return _fbgemm_fp16(weight, bias)
    if kernel == "onednn-fp32":
        return _onednn_fp32(weight, bias)
    return lambda x: linear(x, weight, bias)


def _fbgemm_fp16(weight: Tensor, bias: Tensor | None) -> Linear:
    packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())
    run = torch.ops.quantized.linear_dynamic_fp16.default
    return lambda x: run(x, packed)


def _onednn_fp32(weight: Tensor, bias: Tensor | None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.float().contiguous(), None)
    bias = None if bias is None else bias.float()
    run = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: run(x, packed, bias, "none", [], "")
