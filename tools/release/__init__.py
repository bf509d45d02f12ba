"""A release of the distributions: built, checked, installed where nothing else is, listed, audited."""
