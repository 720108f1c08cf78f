"""Whether searches for programs pay: HumanEval and MBPP, several searches, one model, judged by hidden tests.

Modules: `tasks` the data sets, `contenders` what is compared, `asking` one question to a runtime here or to a server,
`judging` the hidden tests, `measuring` the raw row of one cell, `study` the run, `summary` the numbers, `documents`
table, plot and page, `flags` the command line.
"""
