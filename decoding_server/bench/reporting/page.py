"""The self-contained page: one file, nothing of which is loaded from elsewhere, and in which nothing runs."""

import html
from collections.abc import Sequence

from decoding_server.bench.reporting.blocks import Block

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --line: #c8ccd2; --soft: #f3f5f8; --text: #1b1f24; --back: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444c56; --soft: #22272e; --text: #dfe3e8; --back: #1a1d21; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto;
  max-width: 1180px; padding: 1rem; }
h1, h2, h3 { line-height: 1.25; }
h2 { border-bottom: 1px solid var(--line); padding-bottom: .25rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: .2rem .5rem; text-align: right; overflow-wrap: anywhere; }
thead th { background: var(--soft); text-align: center; }
tbody th { text-align: left; font-weight: 500; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #ffffff; }
details { margin: .4rem 0; }
summary { cursor: pointer; }
"""


def page(title: str, blocks: Sequence[Block]) -> str:
    body = "\n".join(block.html() for block in blocks)
    name = html.escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{name}</h1>
{body}
</main>
</body>
</html>
"""
