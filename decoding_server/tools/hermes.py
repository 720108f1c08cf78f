"""The format of Hermes, Qwen 2.5, Qwen 3 and others: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from decoding_server.tools.parser import Scan, ToolCallParser


class HermesParser(ToolCallParser):
    """Each call stands between its own tags. A closing tag that is missing is not missed."""

    _unclosed = False  # a call was reported and its closing tag has not come yet

    def _opens(self) -> bool:
        return self._char == "<"

    def _calls(self) -> Scan[None]:
        yield from self._literal("<")
        if self._char == "/" and self._unclosed:
            yield from self._literal("/tool_call>")
            self._unclosed = False
            self._pending.clear()
            return
        yield from self._literal("tool_call>")
        self._reported = False
        yield from self._space()
        try:
            yield from self._call_object(marked=True)
        finally:
            self._unclosed = self._reported
