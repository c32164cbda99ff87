"""Benchmarks: their definitions as data, their items, and what scores an answer."""
