"""Benchmarks joined: items, engines, records; what records say; judging and translating."""
