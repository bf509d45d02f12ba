"""Measure a model on a device: end to end from here, and inside the agent."""
