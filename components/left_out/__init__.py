"""Component `left_out`: the hospitals that missed rounds or the evaluation, and why."""
