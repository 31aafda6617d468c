"""Which models are kept under a name, and why."""
