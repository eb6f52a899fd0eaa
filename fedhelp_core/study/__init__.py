"""Methods x seeds on one machine, as tables and figures."""
