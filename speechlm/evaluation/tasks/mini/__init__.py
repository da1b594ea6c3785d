"""Small benchmarks made on the spot, in the layout of the published ones.

They need no data and little time, and say whether a small model learnt anything. Their figures
are not comparable with papers.
"""
