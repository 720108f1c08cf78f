"""Speculative decoding as pure functions: draft trees, the rules that accept their tokens, and the exact theory."""
