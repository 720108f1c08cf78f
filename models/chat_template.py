"""Chat templates: Jinja programs, shipped with a model, that turn a conversation into its prompt text.

They run in a sandbox with the environment that model publishers write for: trimmed blocks, loop controls, and the names
`raise_exception`, `strftime_now` and `tojson`.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from strategies.errors import InvalidRequest, ModelLoadError


class ChatTemplate:
    """A chat template with the special tokens it may use (`bos_token`, `eos_token`, ...). Compiled at first use."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._template: Template | None = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text. Raises InvalidRequest(param="messages") with the template's own message when it refuses the
        conversation, can't handle it (a missing field, content that is no string), or is no valid template."""
        try:
            if self._template is None:
                self._template = _environment().from_string(self.source)
            values = {**self._special_tokens, **variables}
            return self._template.render(
                values,
                messages=messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as fault:
            raise InvalidRequest(f"chat template: {fault.message or type(fault).__name__}", param="messages") from fault
        except Exception as fault:  # a template is a program: any Python error may come out of it
            raise InvalidRequest(f"chat template: {fault} ({type(fault).__name__})", param="messages") from fault


def read_chat_template(override: str) -> str:
    """The template text that an operator's `--chat-template` stands for: itself, or the contents of the file it names.

    Text with a Jinja tag is a template; anything else is a path. Raises ModelLoadError when the file can't be read.
    """
    if "{{" in override or "{%" in override:
        return override
    try:
        return Path(override).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as fault:
        raise ModelLoadError(
            f"--chat-template {override!r} is neither a template nor a readable file ({fault}); check the path"
        ) from fault


class GenerationTag(Extension):
    """Accepts `{% generation %} ... {% endgeneration %}`, a mark for training; the text stays."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models see it in training: no HTML escapes (jinja2's own filter has them), no \\u escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
