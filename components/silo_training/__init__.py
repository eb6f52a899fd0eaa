"""Component `silo_training`: one silo supervised for all rounds; and the worker inside the hospital."""
