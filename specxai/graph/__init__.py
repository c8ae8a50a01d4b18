"""The graph of linear nodes."""
