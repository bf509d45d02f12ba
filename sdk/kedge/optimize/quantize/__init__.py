"""Numbers of fewer bits: ranges, scales, placement of Q/DQ, and the search for which layer gets which precision."""
