"""Make a model smaller and faster for a target, and say what accuracy it kept."""
