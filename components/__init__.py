"""The components of the pipelines, how a silo's work is dispatched, and the fedhelp command."""
