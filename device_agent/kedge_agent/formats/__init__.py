"""Formats that host and agent share: manifest, frames, tensors, latency summaries."""
