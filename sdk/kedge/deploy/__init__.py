"""Bring an agent and releases onto a device."""
