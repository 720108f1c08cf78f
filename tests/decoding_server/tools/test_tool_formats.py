"""Recognising a model's format, and the ids of calls."""

import re

import pytest

from decoding_server.tools.formats import FORMATS, detect_format

LOOP = "{% for m in messages %}{{ m.role }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, None),
        ("", None),
        ("<|im_start|>" + LOOP, None),
        (LOOP + "{{ '<tool_call>\\n' + call | tojson + '\\n</tool_call>' }}", "hermes"),
        (LOOP + "{{ '<tool_call>\\n<function=' + name }}", None),
        (LOOP + "{{ '<tool_call>' + name + '<arg_key>' }}", None),
        (LOOP + "{{ '<|tool_call|>' + call | tojson }}", None),
        (LOOP + "{{ '<TOOLCALL>[' }}<|start_header_id|>", None),
        (LOOP + '<|start_header_id|>{{ \'{"name": "\' + name + \'", "parameters": \' }}', "llama3"),
        (LOOP + "<|start_header_id|>", None),
        (LOOP + "{{ '[TOOL_CALLS] [' + call | tojson }}", "mistral"),
        (LOOP + "{{ '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}", "mistral-v11"),
    ],
)
def test_detection(template: str | None, form: str | None) -> None:
    assert detect_format(template) == form


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("hermes", r"call_[0-9a-f]{24}"),
        ("llama3", r"call_[0-9a-f]{24}"),
        ("mistral", r"[A-Za-z0-9]{9}"),
        ("mistral-v11", r"[A-Za-z0-9]{9}"),
    ],
)
def test_ids(form: str, pattern: str) -> None:
    ids = [FORMATS[form].new_id() for _ in range(100)]
    assert all(re.fullmatch(pattern, call_id) for call_id in ids)
    assert len(set(ids)) == len(ids)


def test_names_are_the_keys() -> None:
    assert {name: form.name for name, form in FORMATS.items()} == {name: name for name in FORMATS}
