"""Measuring: load, bus, engine, planner, simulator. Stands on top of every other package."""
