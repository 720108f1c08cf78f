"""The JSON format of Llama 3.1, 3.2 and 3.3: `{"name": ..., "parameters": {...}}`, several separated by `;`.

Nothing need mark such a call, so an object without `<|python_tag|>` is one only at the beginning of a line, and if it
names a tool that the request offers. `<|python_tag|>` before anything but such an object (code for an interpreter, a
built-in tool's own notation) is content.
"""

from decoding_server.tools.parser import Scan, ToolCallParser

PYTHON_TAG = "<|python_tag|>"


class Llama3Parser(ToolCallParser):
    """One or more objects, with or without the tag before the first or before each."""

    def _opens(self) -> bool:
        return self._char == "<" or (self._char == "{" and self._line_start)

    def _calls(self) -> Scan[None]:
        marked = False
        while True:
            if self._char == "<":
                yield from self._literal(PYTHON_TAG)
                marked = True
                yield from self._space()
            yield from self._call_object(marked=marked)
            yield from self._space()
            if self._char != ";":
                return
            yield
            yield from self._space()
