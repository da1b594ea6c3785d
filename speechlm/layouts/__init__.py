"""How units become LM positions, and back: data, not code paths."""
