"""Running untrusted programs: confined processes, values they return, and tests judged outside of them."""
