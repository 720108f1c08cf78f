"""What Bregman decoding and the grammar-based repetition penalty do to real models.

Run it: `python -m decoding_server.bench.sampling_study --output DIR` (see its `--help`). Three parts:

bregman:    next-token distributions in 200 contexts; how many tokens each (mode, alpha, lambda) keeps, and how sure the
            distribution is before and after, beside top-p and min-p.
repetition: 60 loop-prone beginnings of programs, continued under each penalty: how repetitive the text is, how often
            it ends by itself, how often it compiles.
harm:       HumanEval, greedy: how often a penalty changes an answer that had no need of it, and what that costs.

Modules: `texts` the prompts, `subject` a model, `rows` the raw rows on disk, `waves` what is measured in one go,
`distributions`, `loops` and `humaneval` the three parts, `penalties` the modes they compare, `candidate` and
`limited_run` running a generated program, `summary` from rows to numbers, `tables` and `plots` from numbers to the
documentation, `study` the run.
"""
