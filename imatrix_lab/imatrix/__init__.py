"""Importance matrices: files, checks, collection."""
