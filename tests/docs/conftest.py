"""Where the shared servers of the HTTP tests are."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "decoding_server"))
