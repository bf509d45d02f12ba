"""Measurement on the device: memory, parity with recorded outputs, a closed-loop benchmark."""
