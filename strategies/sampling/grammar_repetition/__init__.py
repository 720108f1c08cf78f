"""Grammar-based repetition penalty (Dong et al. 2025, "Rethinking Repetition Problems of LLMs in Code Generation")."""
