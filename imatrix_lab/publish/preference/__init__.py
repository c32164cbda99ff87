"""Blind comparison: a page to vote on, and what the votes say."""
