"""The study tokfsm."""
