"""Runtimes that execute a model from buffers the agent owns."""
