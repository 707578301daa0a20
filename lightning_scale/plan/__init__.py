"""Plans a run before it starts: its schedule, memory and communication, without training a step."""
