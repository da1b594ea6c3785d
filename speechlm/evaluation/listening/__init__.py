"""Listening tests: a page that people answer with their ears, and what their answers say."""
