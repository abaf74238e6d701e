"""Answering: finished runs in memory, in a terminal, and behind a local address."""
