"""The model card: what files are, what was measured of them, and how they were made."""
