"""The vLLM runtime: vLLM's engine behind `strategies.runtime`, with this project's sampling pipeline inside it.

Nothing here imports vLLM before it is asked to serve a model; `version.require` says whether it can.
"""
