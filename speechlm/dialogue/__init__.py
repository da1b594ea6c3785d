"""Conversations with a bundle: sessions, turns, the process that runs them, and the ways in."""
