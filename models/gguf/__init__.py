"""GGUF files: a fast reader, and conversion to a folder in Hugging Face's layout (safetensors and tokenizer.json)."""
