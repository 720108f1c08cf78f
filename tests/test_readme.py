"""The documents say what the code does: generated blocks are up to date, and no request field is left out."""

import pytest

from decoding_server.config import ServerConfig
from decoding_server.features.__main__ import DOCUMENTS, ROOT, generators
from decoding_server.features.fields import Notes, Reference
from decoding_server.features.markers import names, replaced
from decoding_server.features.routes import bodies

BLOCKS = {
    "README.md": ["accuracy-against-flops", "strategy-matrix", "features"],
    "docs/features.md": ["all-features", "strategies"],
    "docs/api.md": ["endpoints", "errors", "fields", "limits", "settings", "metrics"],
}


@pytest.fixture(scope="module")
def made():
    return generators()


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_generated_blocks_are_there_and_up_to_date(document, made):
    text = read(document)
    assert names(text) == BLOCKS.get(document, names(text))
    assert text == replaced(text, made, foreign=True), (
        f"{document} is stale: python -m decoding_server.features --write"
    )


@pytest.mark.parametrize("path", sorted(bodies()))
def test_every_request_field_is_in_the_reference(path):
    reference = read("docs/api.md")
    fields = [field.alias or name for name, field in bodies()[path].model_fields.items()]
    assert [name for name in fields if f"\n| `{name}` | " not in reference] == []


def test_every_request_field_has_a_meaning():
    reference = Reference(Notes(ROOT / "docs/fields.toml"))
    assert [f"{kind}.{name}" for kind, name, note in reference.every_field() if not note.meaning] == []


def test_every_setting_is_in_the_reference():
    reference = read("docs/api.md")
    flags = ["--" + name.replace("_", "-") for name in ServerConfig.model_fields if name != "model"]
    assert [flag for flag in flags if f"| `{flag}` |" not in reference] == []
