"""What an optimisation cost: outputs before and after, metrics, the paired comparison, and where the error arose."""
