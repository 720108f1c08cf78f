"""The process in which transformers' `generate` runs: JSON lines in, JSON lines out.

A line {"prompts": [[id, ...], ...], "max_tokens": n} is answered with {"tokens": n, "seconds": s}, the time of the call
alone.
"""

import argparse
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def left_padded(prompts: list[list[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both [prompts, longest]: padding in front, so that all prompts end in the same column."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[padding] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    answers = sys.stdout
    sys.stdout = sys.stderr  # the answers have the pipe for themselves
    model = AutoModelForCausalLM.from_pretrained(
        arguments.folder, dtype=getattr(torch, arguments.dtype), attn_implementation="sdpa", local_files_only=True
    )
    model.eval()
    padding = model.config.eos_token_id
    padding = padding[0] if isinstance(padding, list) else padding
    model.generation_config.eos_token_id = None  # the end of a text is no reason to stop
    for line in sys.stdin:
        job = json.loads(line)
        started = time.perf_counter()
        ids, mask = left_padded(job["prompts"], padding)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=job["max_tokens"],
                do_sample=False,
                pad_token_id=padding,
            )
        seconds = time.perf_counter() - started
        tokens = (output.shape[1] - ids.shape[1]) * output.shape[0]
        print(json.dumps({"tokens": tokens, "seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
