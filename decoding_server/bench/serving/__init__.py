"""`decoding-server bench serve`: latency and throughput of a running server under load, strategy by strategy.

Modules: `flags` the command line, `loads` when requests are sent, `requests` what they ask, `client` one streamed
answer and its times, `study` the run, `summary` the numbers, `documents` tables and plots, `command` all together.
"""
