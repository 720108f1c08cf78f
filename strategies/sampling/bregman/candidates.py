"""The K most likely tokens, exactly, in one pass over the vocabulary; and the logarithm of the normaliser.

Order: larger logit first, lower id first among equals, on every device. `torch.topk` promises no order of ties and
reads the whole vocabulary at a fraction of the memory bandwidth. Here one fast pass takes the maximum of each chunk of
consecutive ids; the K best chunks (lower chunk first among equal maxima) contain the K best tokens: were one of them
elsewhere, each of these K chunks would hold a better token, or an equal one with a lower id.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PART = 8
LEAST_CHUNK, MOST_CHUNK = 32, 128  # multiples of PART; the maxima of smaller chunks take several times as long
BLOCK = 1 << 18  # elements of the normaliser's workspace, 1 MiB: it stays in the cache


@dataclass(frozen=True, slots=True, eq=False)
class Chunked:
    """Logits with the maxima of their whole chunks, float32 [R, V] and [R, V // chunk]; float64 logits have none.

    valid: bool [R], False for rows with a NaN or +inf, or nothing but -inf.
    """

    logits: Tensor
    maxima: Tensor | None
    chunk: int
    valid: Tensor


def chunked(logits: Tensor, K: int) -> Chunked:
    """Reads logits [R, V] (float64, float32 or 16-bit) once; K <= V is how many candidates are to be expected."""
    if logits.dtype == torch.float64:  # no room for the id beside the value in one integer key
        return Chunked(logits, None, 1, torch.isfinite(logits.amax(-1)))
    logits = logits.float().contiguous()
    R, V = logits.shape
    chunk = chunk_size(V, K)
    whole = V // chunk
    maxima = logits[:, : whole * chunk].view(R, whole, chunk).amax(-1)
    best = maxima.amax(-1)
    if V % chunk:
        best = torch.maximum(best, logits[:, whole * chunk :].amax(-1))
    return Chunked(logits, maxima, chunk, torch.isfinite(best))


def top_candidates(source: Chunked, K: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The K best tokens of each row, K <= V: logits [B, K] (float64 stays, else float32) and ids int64 [B, K].

    rows: int64 [B], all rows if None. What an invalid row's candidates are means nothing.
    """
    logits, maxima, chunk = source.logits, source.maxima, source.chunk
    V = logits.shape[-1]
    if maxima is None:
        values, ids = (logits if rows is None else logits[rows]).sort(dim=-1, descending=True, stable=True)
        return values[:, :K], ids[:, :K]
    if rows is None:
        rows = torch.arange(len(logits), device=logits.device)
    else:
        maxima = maxima[rows]
    row = rows[:, None]
    whole = maxima.shape[-1]
    if whole <= K:
        values, ids = logits[rows], torch.arange(V, device=logits.device)
    else:
        # The same twice: the best chunks (and the partial one at the end), then the best parts of those. The order of
        # what is chosen does not matter, since a key carries the id.
        chosen = _best(maxima, torch.arange(whole, device=logits.device) * chunk, K)
        windows = logits.view(-1).unfold(0, chunk, 1)
        parts = windows.index_select(0, (row * V + chosen).flatten()).view(len(rows), -1, PART).amax(-1)
        starts = (chosen[:, :, None] + torch.arange(0, chunk, PART, device=logits.device)).flatten(1)
        if V % chunk:
            tail = torch.nn.functional.pad(logits[rows, whole * chunk :], (0, -V % PART), value=-math.inf)
            parts = torch.cat([parts, tail.view(len(rows), -1, PART).amax(-1)], -1)
            ends = torch.arange(whole * chunk, V, PART, device=logits.device).expand(len(rows), -1)
            starts = torch.cat([starts, ends], -1)
        chosen = _best(parts, starts, K)
        ids = (chosen[:, :, None] + torch.arange(PART, device=logits.device)).flatten(1)
        values = logits[row, ids.clamp_max(V - 1)]
        if V % PART:
            values.masked_fill_(ids >= V, -math.inf)
    # A negative NaN sorts behind the padding, whose ids point nowhere; such a row is invalid, but must not raise.
    ids = _best(values, ids, K, ordered=True).clamp_max(V - 1)
    return logits[row, ids], ids


def chunk_size(V: int, K: int) -> int:
    """The power of two that balances V / chunk maxima against K * chunk candidates."""
    size = 1 << max(0, round(math.log2(V / K) / 2))
    return min(max(size, LEAST_CHUNK), MOST_CHUNK, V)


def _best(values: Tensor, ids: Tensor, K: int, ordered: bool = False) -> Tensor:
    """The ids of the K largest float32 values [B, N], lower id first among equals; ids [B, N] or [N], below 2^32."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    rank = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # ordered as the floats are
    key = (rank.long() << 32) + (0xFFFFFFFF - ids)
    return 0xFFFFFFFF - (key.topk(K, sorted=ordered).values & 0xFFFFFFFF)


def top_logprob(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each row's best token in the whole vocabulary, float64 [R].

    logits: float64 or float32 [R, V]; ids: its best tokens, int64 [R]. On a CPU the float32 pass runs on blocks of rows
    that stay in the cache: `torch.logsumexp` writes and reads back a copy of the logits, several times as slow.
    """
    R, V = logits.shape
    if logits.device.type != "cpu" or logits.dtype == torch.float64:
        return (logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)).double()
    block = min(R, max(torch.get_num_threads(), BLOCK // V))
    workspace = torch.empty(block, V)
    found = torch.empty(R, 1)
    for start in range(0, R, block):
        end = min(start + block, R)
        log_p = torch.log_softmax(logits[start:end], -1, out=workspace[: end - start])
        found[start:end] = log_p.gather(-1, ids[start:end, None])
    return found[:, 0].double()
