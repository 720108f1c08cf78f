"""Tables of the documentation, made from the code: what is served, and beside it what other servers do.

    python -m decoding_server.features --check      # are they up to date?
    python -m decoding_server.features --write      # README.md, docs/features.md and docs/api.md of a checkout

`markers` replaces blocks of a file, `routes` reads the application's routes, `support` finds out what becomes of a
request, `comparison` puts that beside docs/peers.toml, `fields` describes request bodies (docs/fields.toml says what
their types don't), `operations` configuration, metrics, error codes and strategies.
"""
