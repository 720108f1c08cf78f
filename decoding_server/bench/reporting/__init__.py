"""`decoding-server bench report`: pages from the raw rows of one run, or of two that are compared.

Modules: `folder` a run as it lies on disk, `views` what is shown of each kind of run, `comparison` two runs of a kind,
`blocks` what a report is made of, `page` the self-contained HTML, `flags` and `command` the command line.
"""
