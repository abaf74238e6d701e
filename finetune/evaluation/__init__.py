"""Measuring finished runs: what they answer, and how that compares."""
