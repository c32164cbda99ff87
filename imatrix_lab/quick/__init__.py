"""What tuning bought, in one line: a few held-out documents, right after a file was made."""
