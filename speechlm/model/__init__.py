"""The decoder-only unit LM."""
