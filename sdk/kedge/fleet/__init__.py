"""Which devices there are, and how to open one by its name."""
