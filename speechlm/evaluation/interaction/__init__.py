"""Who speaks when: turns, overlap, and what a duplex system does with them."""
