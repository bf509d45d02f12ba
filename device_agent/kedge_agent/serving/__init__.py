"""The inference server: HTTP over Unix sockets, Open Inference Protocol v2, model repository."""
