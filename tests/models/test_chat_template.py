import json
from datetime import datetime
from pathlib import Path

import pytest

from models.chat_template import ChatTemplate, read_chat_template
from models.loading import resolve
from models.tokenizer import load_tokenizer
from strategies.errors import InvalidRequest, ModelLoadError

USER = [{"role": "user", "content": "hi"}]


def render(source: str, messages: list[dict[str, object]] | None = None, **variables: object) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return template.render(USER if messages is None else messages, **variables)  # type: ignore[arg-type]


def test_the_default_model_renders_as_its_template_says() -> None:
    tokenizer = load_tokenizer(resolve(None).folder)
    conversation = [*USER, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "é 你?"}]
    turns = (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\né 你?<|im_end|>\n"
    )
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    assert tokenizer.render_chat(conversation) == system + turns + "<|im_start|>assistant\n"
    assert tokenizer.render_chat(conversation, add_generation_prompt=False) == system + turns
    with pytest.raises(InvalidRequest) as error:
        tokenizer.render_chat([{"role": "user"}])
    assert error.value.param == "messages"


SAMPLES = [
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ bos_token }}{{ m['content'] | trim }}\n  {% endif %}\n"
    "{% endfor %}",
    "{%- for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}",
    "{{ tools | tojson }}|{{ tools | tojson(indent=2) }}|{{ documents is none }}|{{ add_generation_prompt }}",
    "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
    "{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ nothing }}",
    "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}",
]


@pytest.mark.parametrize("source", SAMPLES)
def test_renders_as_transformers_does(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    tools = [{"type": "function", "function": {"name": "f", "description": "<é & 'q'>"}}]
    messages: list[dict[str, object]] = [*USER, {"role": "user", "content": " <b>é</b> "}]
    expected, _ = render_jinja_template(
        [messages], tools=tools, documents=None, chat_template=source, add_generation_prompt=True,
        bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    assert render(source, messages, tools=tools) == expected[0]


def test_variables_and_the_date_reach_the_template() -> None:
    assert render("{{ enable_thinking }}{{ bos_token }}", enable_thinking=False) == "False<s>"
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert json.loads(render("{{ messages | tojson }}")) == USER


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].absent.field }}", "absent"),
        ("{% if %}", "Expected an expression"),
        ("{{ 'a' + messages }}", "can only concatenate str"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "attribute 'append' .* unsafe"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_is_the_requests_fault(source: str, expected: str) -> None:
    with pytest.raises(InvalidRequest, match=expected) as error:
        render(source)
    assert error.value.param == "messages"


def test_the_override_is_a_template_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my.jinja"
    file.write_text("{{ messages[0].content }}é", encoding="utf-8")
    assert render(read_chat_template(str(file))) == "hié"
    assert read_chat_template("{{ x }}") == "{{ x }}"
    with pytest.raises(ModelLoadError, match=r"absent\.jinja.*check the path"):
        read_chat_template(str(tmp_path / "absent.jinja"))
    with pytest.raises(ModelLoadError, match="neither a template nor a readable file"):
        read_chat_template("x" * 5000)
