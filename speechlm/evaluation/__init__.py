"""Metrics, judges and the report."""
