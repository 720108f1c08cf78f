"""`decoding-server bench quality`: which strategy answers best under equal budgets, and at what cost.

Modules: `flags` the command line and workload files, `tasks` the data set, `graders` what is right, `contenders` the
strategies and how they use a budget, `measuring` the raw row of one cell, `study` the run, `summary` the numbers,
`documents` tables and plots, `command` all of it together.
"""
