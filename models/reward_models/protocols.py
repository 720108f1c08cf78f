"""What each family of process reward models reads, and where in it the score of each step stands.

| protocol             | input                                                           | score of a step at its  |
| qwen                 | chat: system prompt, question, steps with <extra_0> after each  | <extra_0>               |
| math-shepherd        | question, blank, "Step i: ... ки" a line                        | ки, "+" against "-"     |
| rlhflow              | chat: user "question step", assistant "+", user "step", ...     | prediction of its "+"   |
| skywork              | bos, question, line break; lines encoded one by one             | last line break         |
| openr                | question, blank, steps each followed by blank and 5 line breaks | tag, " +" against " -"  |
| token-classification | question, steps, each with a blank line, encoded one by one     | blank line              |

Sources: the model cards and published inference code of Qwen2.5-Math-PRM, Math-Shepherd, RLHFlow's Llama3.1-8B-PRM,
Skywork-o1-Open-PRM, OpenR and TRL. A tag that is not one token in the checkpoint's tokenizer is refused at load.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from models.tokenizer import HuggingFaceTokenizer
from strategies.errors import ModelLoadError, RequestFailed

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class Reading:
    """One input. positions: of the hidden state that scores each step, ascending."""

    tokens: list[int]
    positions: list[int]


Reader = Callable[[str, Sequence[str]], Reading]
"""(question, steps) -> input. At least one step; steps hold no outer white space. Raises RequestFailed."""


def one_token(tokenizer: HuggingFaceTokenizer, text: str) -> int:
    """The id of a text that must be one token. Raises ModelLoadError."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ModelLoadError(
            f"the reward model's tokenizer writes {text!r} with {len(ids)} tokens, where its protocol has one; "
            "name another with --reward-protocol"
        )
    return ids[0]


def qwen(tokenizer: HuggingFaceTokenizer) -> Reader:
    """Qwen2.5-Math-PRM."""
    tag = "<extra_0>"
    tag_id = one_token(tokenizer, tag)

    def read(question: str, steps: Sequence[str]) -> Reading:
        text = tokenizer.render_chat(
            [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": question.replace(tag, "")},
                {"role": "assistant", "content": "".join(step.replace(tag, "") + tag for step in steps)},
            ],
            add_generation_prompt=False,
        )
        return at_tags(tokenizer.encode(text, add_special_tokens=False), tag_id, len(steps))

    return read


def math_shepherd(tokenizer: HuggingFaceTokenizer) -> Reader:
    """peiyi9979/math-shepherd-mistral-7b-prm."""
    tag = "ки"
    tag_id = one_token(tokenizer, tag)

    def read(question: str, steps: Sequence[str]) -> Reading:
        lines = [f"Step {i}: {step.replace(tag, '')} {tag}" for i, step in enumerate(steps, 1)]
        text = f"{question.replace(tag, '')} " + "\n".join(lines)
        return at_tags(tokenizer.encode(text), tag_id, len(steps))

    return read


def openr(tokenizer: HuggingFaceTokenizer) -> Reader:
    """OpenR's Qwen2.5-Math-7B PRM."""
    tag = " \n\n\n\n\n"
    tag_id = one_token(tokenizer, tag)

    def read(question: str, steps: Sequence[str]) -> Reading:
        text = f"{question.strip()} " + "".join(step + tag for step in steps)
        return at_tags(tokenizer.encode(text), tag_id, len(steps))

    return read


def rlhflow(tokenizer: HuggingFaceTokenizer) -> Reader:
    """RLHFlow/Llama3.1-8B-PRM-*-Data: every assistant turn is one "+"."""
    plus = one_token(tokenizer, "+")

    def read(question: str, steps: Sequence[str]) -> Reading:
        messages: list[dict[str, str]] = []
        ends: list[int] = []
        tokens: list[int] = []
        for i, step in enumerate(steps):
            messages.append({"role": "user", "content": step if i else f"{question} {step}"})
            asked = tokenizer.encode(tokenizer.render_chat(messages), add_special_tokens=False)
            ends.append(len(asked) - 1)
            messages.append({"role": "assistant", "content": "+"})
            tokens = tokenizer.encode(
                tokenizer.render_chat(messages, add_generation_prompt=False), add_special_tokens=False
            )
            if tokens[: len(asked)] != asked or tokens[len(asked)] != plus:
                raise RequestFailed("the reward model's chat template does not go on from its own generation prompt")
        if any(tokens[end + 1] != plus for end in ends):
            raise RequestFailed("the reward model's chat template changes earlier turns")
        return Reading(tokens, ends)

    return read


def skywork(tokenizer: HuggingFaceTokenizer) -> Reader:
    """Skywork-o1-Open-PRM."""
    newline = one_token(tokenizer, "\n")
    bos = tokenizer.bos_token_id

    def read(question: str, steps: Sequence[str]) -> Reading:
        tokens = [] if bos is None else [bos]
        tokens += tokenizer.encode(question + "\n", add_special_tokens=False)
        positions = []
        for step in steps:
            for line in step.split("\n"):
                tokens += [*tokenizer.encode(line, add_special_tokens=False), newline]
            positions.append(len(tokens) - 1)
        return Reading(tokens, positions)

    return read


def token_classification(tokenizer: HuggingFaceTokenizer) -> Reader:
    """Models trained by TRL's PRMTrainer with a blank line between steps; pieces are encoded one by one, as there."""
    separator = tokenizer.encode("\n\n", add_special_tokens=False)
    bos = tokenizer.bos_token_id

    def read(question: str, steps: Sequence[str]) -> Reading:
        tokens = [] if bos is None else [bos]
        tokens += [*tokenizer.encode(question, add_special_tokens=False), *separator]
        positions = []
        for step in steps:
            tokens += [*tokenizer.encode(step, add_special_tokens=False), *separator]
            positions.append(len(tokens) - 1)
        return Reading(tokens, positions)

    return read


READERS: Mapping[str, Callable[[HuggingFaceTokenizer], Reader]] = {
    "qwen": qwen,
    "math-shepherd": math_shepherd,
    "rlhflow": rlhflow,
    "skywork": skywork,
    "openr": openr,
    "token-classification": token_classification,
}


def at_tags(tokens: list[int], tag: int, count: int) -> Reading:
    """The reading whose positions are those of the tags. Raises RequestFailed unless there are `count`."""
    positions = [i for i, token in enumerate(tokens) if token == tag]
    if len(positions) != count:
        raise RequestFailed(f"the reward model's step tag stands {len(positions)} times in a text of {count} steps")
    return Reading(tokens, positions)
