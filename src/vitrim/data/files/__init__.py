"""Decode image files, and remember those that cannot be decoded."""
