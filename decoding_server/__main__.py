"""`python -m decoding_server`."""

from decoding_server.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
