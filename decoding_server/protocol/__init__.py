"""OpenAI's wire format: pydantic models for what comes in, typed dictionaries for what goes out."""
