"""Recordings and units: corpora, their makers, and the unit store."""
