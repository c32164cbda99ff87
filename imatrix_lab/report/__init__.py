"""A study's results as a page and as text. No arithmetic beyond formatting."""
