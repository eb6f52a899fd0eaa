"""Component `silo_training`: one silo supervised for all rounds."""
