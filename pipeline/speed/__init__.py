"""What a run costs: its arithmetic, its time by phase, its messages, its energy, beside what the device could do."""
