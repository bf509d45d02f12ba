"""Releases on the host: a folder holding manifest.json and exactly the files it names."""
