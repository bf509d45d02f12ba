"""`kedge demo`: the whole way on real data, on this machine, leaving nothing behind."""
