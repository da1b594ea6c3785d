"""Vocoders that come with speechlm, one file a family."""
