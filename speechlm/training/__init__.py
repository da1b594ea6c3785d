"""Objectives, and the fairseq2 recipe that runs them."""
