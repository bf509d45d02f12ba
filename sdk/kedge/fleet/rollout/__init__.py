"""Rollouts: one release to many devices, in waves, by a coordinator that survives its own death."""
