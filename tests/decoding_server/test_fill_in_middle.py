"""The parts of a fill-in-the-middle prompt, in each family's order."""

from collections.abc import Mapping

import pytest

from decoding_server.errors import InvalidField
from decoding_server.fill_in_middle import KNOWN, Markers, fill_in_middle
from models.scripted import ByteTokenizer


class Marked(ByteTokenizer):
    """A byte tokenizer with a family's markers as special tokens 300, 301, ..."""

    def __init__(self, markers: Markers, bos: int | None = None) -> None:
        super().__init__()
        self.names = {name: 300 + i for i, name in enumerate((markers.prefix, markers.suffix, markers.middle)) if name}
        self.bos = bos

    @property
    def special_token_ids(self) -> Mapping[str, int]:
        return self.names

    @property
    def bos_token_id(self) -> int | None:
        return self.bos


@pytest.mark.parametrize("markers", KNOWN, ids=lambda markers: markers.prefix)
def test_every_family_gets_its_order(markers: Markers) -> None:
    tokens = fill_in_middle(Marked(markers), "ab", "c")
    if markers.suffix_first:
        assert tokens == [301, 99, 300, 97, 98]
    else:
        assert tokens == [300, 97, 98, 301, 99, 302]


def test_a_sequence_begins_with_its_beginning() -> None:
    assert fill_in_middle(Marked(KNOWN[0], bos=7), "a", "b")[0] == 7


def test_a_model_without_markers_is_refused() -> None:
    with pytest.raises(InvalidField) as refused:
        fill_in_middle(ByteTokenizer(), "a", "b")
    assert (refused.value.param, refused.value.code) == ("suffix", "unsupported_parameter")
