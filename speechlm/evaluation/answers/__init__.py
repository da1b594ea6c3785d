"""Whether what is said is right, useful and safe: rules, judges and scorers of texts."""
