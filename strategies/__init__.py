"""The decoding algorithms: tensors, tokens and text; no HTTP and no model class."""
