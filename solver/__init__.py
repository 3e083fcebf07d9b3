"""The planner: which layers each node should hold, and how much flow that allows."""
