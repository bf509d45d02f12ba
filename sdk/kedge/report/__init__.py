"""Figures and documents as people read them."""
