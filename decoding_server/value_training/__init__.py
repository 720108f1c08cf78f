"""`decoding-server train-value`: a value head from outcome-labelled solutions of the served model."""
