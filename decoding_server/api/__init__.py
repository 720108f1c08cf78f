"""The endpoints, one file a family. Each has a `router`; `decoding_server.app` puts them together."""
