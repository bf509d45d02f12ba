"""Pruning: single weights, 2:4, channels, whole blocks; what each saves is counted, and timed where it can be."""
