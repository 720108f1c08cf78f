"""What speculation brings: every method at every budget of draft tokens, against plain decoding in the same run.

Run it: `python -m decoding_server.bench.speculation --output DIR` (see its `--help`). The engine runs in this process,
without HTTP, so that a step's cost is what is measured. Prompts are computed before the clock starts: decoding is what
speculation changes. Cells take turns with plain decoding, and a cell's ratio is to the plain cells around it, so that
the machine's drift cancels.

Definitions. Budget B: draft nodes that a round may verify, the root not counted. Block efficiency: tokens per forward
of the target after a sequence's first token. MBSU, the memory-bound speed-up: tokens per unit of cost where a forward
of the target costs 1 and one of the draft costs rho, the ratio of their parameters (look-up costs nothing); for a
method of L draft forwards a round it is eta / (1 + L rho).

Modules: `copying` the copy-heavy prompts, `datasets` the others, `grid` methods and shapes, `measure` one cell,
`theory` what block efficiency should have been, `peers` transformers, `rows` the file, `report` table and plot.
"""
