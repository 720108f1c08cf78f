"""The formats by name: how a model is recognised, parsed, and forced to make a call."""

import secrets
import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from decoding_server.tools.hermes import HermesParser
from decoding_server.tools.llama3 import PYTHON_TAG, Llama3Parser
from decoding_server.tools.mistral import TOOL_CALLS, MistralParser
from decoding_server.tools.parser import ToolCallParser

_ALPHANUMERIC = string.ascii_letters + string.digits


def hex_call_id() -> str:
    """`call_` and 96 random bits."""
    return "call_" + secrets.token_hex(12)


def mistral_call_id() -> str:
    """Nine letters and digits: Mistral's templates refuse any other id when the client sends the call back."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


@dataclass(frozen=True, slots=True)
class CallLayout:
    """How a format writes calls whose arguments are given:

    begin, then for each call (`separator` between them) before_name, name, after_name, arguments, after_arguments,
    then end. The name comes before the arguments, so that the parser can stream these.
    """

    begin: str
    before_name: str
    after_name: str
    after_arguments: str
    separator: str
    end: str


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """One way of writing tool calls.

    markers: the texts that the parser needs to see. In many vocabularies they are special tokens, which have no text
    unless whoever decodes the answer keeps them.
    """

    name: str
    parser: type[ToolCallParser]
    new_id: Callable[[], str]
    markers: tuple[str, ...]
    layout: CallLayout

    def create_parser(
        self, tool_names: Collection[str], *, parallel: bool = True, new_id: Callable[[], str] | None = None
    ) -> ToolCallParser:
        """A parser of one answer. `new_id` replaces the format's own ids."""
        return self.parser(new_id or self.new_id, tool_names, parallel=parallel)


FORMATS: Mapping[str, ToolCallFormat] = {
    form.name: form
    for form in (
        ToolCallFormat(
            "hermes",
            HermesParser,
            hex_call_id,
            ("<tool_call>", "</tool_call>"),
            CallLayout("", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n", ""),
        ),
        ToolCallFormat(
            "llama3",
            Llama3Parser,
            hex_call_id,
            (PYTHON_TAG,),
            CallLayout("", '{"name": "', '", "parameters": ', "}", "; ", ""),
        ),
        ToolCallFormat(
            "mistral",
            MistralParser,
            mistral_call_id,
            (TOOL_CALLS,),
            CallLayout(TOOL_CALLS + "[", '{"name": "', '", "arguments": ', "}", ", ", "]"),
        ),
        ToolCallFormat(
            "mistral-v11",
            MistralParser,
            mistral_call_id,
            (TOOL_CALLS, "[CALL_ID]", "[ARGS]"),
            CallLayout("", TOOL_CALLS, "[ARGS]", "", "", ""),
        ),
    )
}

_TAGGED_OTHERWISE = ("<function=", "<arg_key>")
"""What models that share Hermes' tags but not its JSON have inside them (Qwen3-Coder, Step; GLM)."""


def detect_format(chat_template: str | None) -> str | None:
    """The name of the format that a chat template teaches or replays, or None if it is none of ours.

    A template must spell the markers of earlier calls in the conversation, and these give it away.
    """
    if not chat_template:
        return None
    if TOOL_CALLS in chat_template:
        return "mistral-v11" if "[ARGS]" in chat_template else "mistral"
    if "<tool_call>" in chat_template:
        return None if any(mark in chat_template for mark in _TAGGED_OTHERWISE) else "hermes"
    if "<|start_header_id|>" in chat_template and '"parameters"' in chat_template:
        return "llama3"
    return None
