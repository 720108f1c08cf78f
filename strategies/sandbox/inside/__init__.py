"""What runs inside a sandbox, beside the untrusted program: Python's standard library only, Python 3.9 or later."""
