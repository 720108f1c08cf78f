"""`python -m decoding_server.bench`: the throughput benchmark."""

from decoding_server.bench.throughput import main

if __name__ == "__main__":
    raise SystemExit(main())
