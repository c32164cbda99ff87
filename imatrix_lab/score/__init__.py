"""Scoring: every token's divergence of a quant from its full model."""
