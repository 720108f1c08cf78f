"""Token-level decoding: transforms of the logits, the pipeline that orders them, and the draw."""
