"""The processors of both model runners: they follow vLLM's batch, whose rows move, come and go.

Model Runner V2 needs Triton for the device, which PyPI has for GPUs only, so its processor is driven here through its
interface, with tensors of the CPU in the places of vLLM's own.
"""

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from requirement import do_without

from models.loading import resolve
from models.vllm_runtime.notes import VARIABLE
from models.vllm_runtime.wire import encode
from strategies.runtime import Generation, SamplingParameters
from strategies.sampling.mirostat import Mirostat
from strategies.sampling.penalties import CountPenalty
from strategies.sampling.pipeline import process, sample
from strategies.sampling.row import Row

SIZE = 49152
SAMPLING = SamplingParameters(1.0, (CountPenalty(presence=2.0, frequency=1.0),))


def configuration() -> Any:
    model = SimpleNamespace(model=str(resolve(None).folder), get_vocab_size=lambda: SIZE)
    return SimpleNamespace(model_config=model)


def parameters(key: int, seed: int, sampling: SamplingParameters = SAMPLING) -> Any:
    return SimpleNamespace(extra_args=encode(Generation([1], sampling, seed=seed), key))


def expected(logits: torch.Tensor, prompt: list[int], output: list[int], seed: int) -> int:
    row = Row(Generation(prompt, SAMPLING, seed=seed, answer=output), frozenset())
    return int(sample(process(logits[None].clone(), [row]), [row], [len(prompt) + len(output)])[0])


def random_logits(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.fixture(scope="module")
def interface(vllm_is_here: None) -> Any:
    return importlib.import_module("vllm.v1.sample.logits_processor")


@pytest.fixture(autouse=True)
def nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of another test may have had a pipe."""
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def first(interface: Any) -> Any:
    module = importlib.import_module("models.vllm_runtime.processor_v1")
    return module.PipelineLogitsProcessor(configuration(), torch.device("cpu"), False)


def update(interface: Any, size: int, *, removed: Any = (), added: Any = (), moved: Any = ()) -> Any:
    return interface.BatchUpdate(batch_size=size, removed=removed, added=added, moved=moved)


def test_v1_rows_come_move_and_go(interface: Any, first: Any) -> None:
    direction = interface.MoveDirectionality
    prompts = {1: [5, 6], 2: [7], 3: [8, 9, 10]}
    outputs: dict[int, list[int]] = {1: [], 2: [], 3: []}
    where: dict[int, int] = {}

    def step(number: int, rows: int) -> None:
        logits = random_logits(rows, number)
        before = logits.clone()
        chosen = first.apply(logits).argmax(-1).tolist()
        for key, row in where.items():
            assert chosen[row] == expected(before[row], prompts[key], outputs[key], key)
            outputs[key].append(chosen[row])
        for row in set(range(rows)) - set(where.values()):
            assert torch.equal(logits[row], before[row])

    added = [(row, parameters(key, key), prompts[key], outputs[key]) for row, key in enumerate((1, 2, 3))]
    first.update_state(update(interface, 4, added=[*added, (3, SimpleNamespace(extra_args=None), [1], [])]))
    where |= {1: 0, 2: 1, 3: 2}
    step(1, 4)
    first.update_state(None)
    step(2, 4)
    first.update_state(update(interface, 4, moved=[(0, 2, direction.SWAP)]))
    where |= {1: 2, 3: 0}
    step(3, 4)
    # The first request ends; the last row takes its place.
    first.update_state(update(interface, 3, removed=[2], moved=[(3, 2, direction.UNIDIRECTIONAL)]))
    del where[1]
    step(4, 3)
    # Another one comes to a row that was used before.
    prompts[4], outputs[4] = [11], []
    first.update_state(update(interface, 4, added=[(3, parameters(4, 4), [11], outputs[4])]))
    where[4] = 3
    step(5, 4)


@pytest.mark.parametrize("how", ["removed", "replaced", "overrun"])
def test_v1_a_preempted_request_keeps_what_its_transforms_saw(interface: Any, first: Any, how: str) -> None:
    """Mirostat's threshold depends on the distributions of all steps, which can't be made again. Whoever takes the row
    of a request that left, by coming or by moving there, hides that it left. The logits are peaked, so that the
    threshold decides; the beginning of another threshold draws other tokens, as the last lines make sure."""
    sampling = SamplingParameters(1.0, (Mirostat(tau=2.0, eta=1.0),))
    twin = importlib.import_module("models.vllm_runtime.processor_v1").PipelineLogitsProcessor(
        configuration(), torch.device("cpu"), False
    )
    outputs: list[int] = []
    other: list[int] = []
    for processor, tokens in ((first, outputs), (twin, other)):
        processor.update_state(update(interface, 1, added=[(0, parameters(1, 1, sampling), [5], tokens)]))
    neighbour = parameters(2, 2), [6], []
    if how == "overrun":
        first.update_state(update(interface, 2, added=[(1, *neighbour)]))
    for number in range(24):
        if number == 8:
            if how == "removed":
                first.update_state(update(interface, 0, removed=[0]))
            elif how == "replaced":
                first.update_state(update(interface, 1, added=[(0, *neighbour)]))
            else:
                first.update_state(update(interface, 1, moved=[(1, 0, interface.MoveDirectionality.UNIDIRECTIONAL)]))
            again = list(outputs)
            row = 0 if how == "removed" else 1
            first.update_state(update(interface, row + 1, added=[(row, parameters(1, 1, sampling), [5], again)]))
            outputs = again
        logits = random_logits(1, number) * 4
        rows = 2 if how == "overrun" or (how == "replaced" and number >= 8) else 1
        chosen = first.apply(logits.repeat(rows, 1)).argmax(-1).tolist()
        outputs.append(chosen[1 if how != "removed" and number >= 8 else 0])
        other.append(int(twin.apply(logits).argmax()))
    assert outputs == other
    twin.update_state(update(interface, 1, added=[(0, parameters(3, 1, sampling), [5], forgetful := other[:8])]))
    for number in range(8, 24):
        forgetful.append(int(twin.apply(random_logits(1, number) * 4).argmax()))
    assert forgetful != other


# Model Runner V2


@pytest.fixture
def second(vllm_is_here: None) -> Any:
    try:
        module = importlib.import_module("models.vllm_runtime.processor_v2")
    except ImportError as error:
        do_without(f"this vLLM has no Model Runner V2 here: {error}")
    states = SimpleNamespace(
        device=torch.device("cpu"),
        all_token_ids=SimpleNamespace(gpu=torch.zeros(4, 64, dtype=torch.int32)),
        prompt_len=SimpleNamespace(np=np.zeros(4, np.int32)),
        prefill_len=SimpleNamespace(np=np.zeros(4, np.int32)),
    )
    processor = module.PipelineLogitsProcessor(configuration(), states)
    return SimpleNamespace(processor=processor, states=states)


def fill(second: Any, slot: int, prompt: list[int], output: list[int]) -> None:
    tokens = [*prompt, *output]
    second.states.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    second.states.prompt_len.np[slot], second.states.prefill_len.np[slot] = len(prompt), len(tokens)


def context(slots: list[int], latest: list[int], positions: list[int]) -> Any:
    return SimpleNamespace(
        idx_mapping_np=np.array(slots),
        input_ids=torch.tensor(latest, dtype=torch.int32),
        pos=torch.tensor(positions, dtype=torch.int64),
    )


def test_v2_follows_slots(second: Any) -> None:
    """Rows are in another order at every step; a slot is used again; a request comes back with its output."""
    prompts = {1: [5, 6], 2: [7]}
    outputs: dict[int, list[int]] = {1: [], 2: []}
    slots = {1: 3, 2: 0}
    for key, slot in slots.items():
        fill(second, slot, prompts[key], [])
        assert second.processor.add_request(slot, parameters(key, key))
    assert not second.processor.add_request(1, SimpleNamespace(extra_args=None))

    def step(number: int, keys: list[int]) -> None:
        second.processor.apply_staged_writes()
        tokens = {key: [*prompts[key], *outputs[key]] for key in keys}
        rows = [*(slots[key] for key in keys), 1]
        latest, positions = [tokens[key][-1] for key in keys], [len(tokens[key]) - 1 for key in keys]
        logits = random_logits(len(rows), number)
        before = logits.clone()
        chosen = second.processor.apply(logits, context(rows, [*latest, 4], [*positions, 9])).argmax(-1).tolist()
        for row, key in enumerate(keys):
            assert chosen[row] == expected(before[row], prompts[key], outputs[key], key)
            outputs[key].append(chosen[row])
            fill(second, slots[key], prompts[key], outputs[key])
        assert torch.equal(logits[-1], before[-1])

    step(1, [1, 2])
    step(2, [2, 1])
    step(3, [1])
    step(4, [2, 1])
    # The first one is preempted and comes back in another slot; a new one takes its old slot.
    slots[1], slots[3], prompts[3], outputs[3] = 2, 3, [9, 9, 9], []
    fill(second, 2, prompts[1], outputs[1])
    fill(second, 3, prompts[3], [])
    assert second.processor.add_request(2, parameters(1, 1))
    assert second.processor.add_request(3, parameters(3, 3))
    step(5, [3, 1, 2])
    step(6, [1, 3])


def test_v2_a_chunk_of_a_prompt_is_no_output(second: Any) -> None:
    fill(second, 0, [5, 6, 7, 8], [])
    second.processor.add_request(0, parameters(1, 1))
    second.processor.apply_staged_writes()
    second.processor.apply(random_logits(1, 0), context([0], [6], [1]))
    logits = random_logits(1, 1)
    before = logits.clone()
    token = int(second.processor.apply(logits, context([0], [8], [3])).argmax())
    assert token == expected(before[0], [5, 6, 7, 8], [], 1)


def test_v2_a_preempted_request_keeps_what_its_transforms_saw(second: Any) -> None:
    """It comes back in another slot, and nobody has taken the old one; a twin stays where it is. A third request begins
    with the same tokens and without that memory."""
    sampling = SamplingParameters(1.0, (Mirostat(tau=2.0, eta=1.0),))
    slots = {1: 3, 2: 0}
    outputs: dict[int, list[int]] = {1: [], 2: []}
    for key, slot in slots.items():
        fill(second, slot, [5], [])
        second.processor.add_request(slot, parameters(key, 1, sampling))
    for number in range(24):
        if number == 8:
            slots |= {1: 1, 3: 2}
            outputs[3] = outputs[1].copy()
            for key in (1, 3):
                fill(second, slots[key], [5], outputs[key])
                second.processor.add_request(slots[key], parameters(key, 1, sampling))
        second.processor.apply_staged_writes()
        tokens = [[5, *outputs[key]] for key in slots]
        logits = random_logits(1, number).repeat(len(slots), 1) * 4
        where = context([*slots.values()], [one[-1] for one in tokens], [len(one) - 1 for one in tokens])
        chosen = second.processor.apply(logits, where).argmax(-1).tolist()
        for key, token in zip(slots, chosen, strict=True):
            outputs[key].append(token)
            fill(second, slots[key], [5], outputs[key])
    assert outputs[1] == outputs[2] != outputs[3]
