"""How a silo's work is started, restarted and given up."""
