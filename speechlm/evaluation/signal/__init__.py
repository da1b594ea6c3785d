"""Figures of recordings: how they sound, and how far they are from a reference."""
