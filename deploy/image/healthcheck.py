"""The image's health check: exit code 0 while /health answers 200.

The port comes from DECODING_SERVER_PORT, so set it there and not by the flag. Imports nothing of the server, which
would cost seconds each time.
"""

import http.client
import os
import sys


def healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if healthy(int(os.environ.get("DECODING_SERVER_PORT") or 8000)) else 1)
