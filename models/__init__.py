"""The runtimes: what turns tokens into distributions. Implements `strategies.runtime`."""
