"""The schema of federation.yaml and silo.yaml, and what is wrong with a file, in sentences."""
