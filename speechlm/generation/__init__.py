"""Drawing units from the LM."""
