"""The two formats of Mistral's models. Both begin with `[TOOL_CALLS]`, so one parser reads either.

- `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]` (tokenizer versions 3 to 7)
- `[TOOL_CALLS]name{...}`, `[TOOL_CALLS]name[ARGS]{...}` or `[TOOL_CALLS]name[CALL_ID]id[ARGS]{...}`, once per call
  (from version 11 on)
"""

from decoding_server.tools.parser import Malformed, Scan, ToolCallParser

TOOL_CALLS = "[TOOL_CALLS]"


class MistralParser(ToolCallParser):
    """An id that the model writes is not used: it need not be unique."""

    def _opens(self) -> bool:
        return self._char == "["

    def _calls(self) -> Scan[None]:
        yield from self._literal(TOOL_CALLS)
        self._reported = False
        yield from self._space()
        if self._char == "[":
            yield from self._array()
        elif self._char == "{":
            yield from self._call_object(marked=True)
        else:
            yield from self._named()

    def _array(self) -> Scan[None]:
        yield from self._literal("[")
        while True:
            yield from self._space()
            yield from self._call_object(marked=True)
            yield from self._space()
            if self._char == "]":
                yield
                self._pending.clear()
                return
            yield from self._literal(",")

    def _named(self) -> Scan[None]:
        name = yield from self._word()
        yield from self._space()
        if self._char == "[":
            yield
            if self._char == "C":
                yield from self._literal("CALL_ID]")
                yield from self._word()
                yield from self._literal("[")
            yield from self._literal("ARGS]")
            yield from self._space()
        if self._char != "{":
            raise Malformed
        yield from self._stream_arguments(name)
