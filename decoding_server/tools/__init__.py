"""Tool calling, the text side: requests to what the model is told, and what the model writes to tool calls."""
