"""Compiles what a request wants its text to be. Compilation may take a while, so it runs in a thread."""

from typing import Any

from decoding_server.protocol.generation import GenerationRequest
from decoding_server.service import Service
from decoding_server.tools.choice import ToolPlan


async def structure_of(service: Service, request: GenerationRequest, tools: ToolPlan | None = None) -> Any:
    return None
