"""Aligned text and its tokens."""
