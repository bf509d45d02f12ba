"""Accuracy on damaged and on hostile inputs, before and after."""
