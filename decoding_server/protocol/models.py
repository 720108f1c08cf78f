"""GET /v1/models."""

from typing import Literal

from typing_extensions import TypedDict


class Model(TypedDict):
    """One served name. `root` is what the weights were loaded from."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]
