"""Our engine: a token tree over KV slots, continuously batched, on torch. `engine` is the step, `load` starts it."""
