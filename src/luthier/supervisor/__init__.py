"""The supervisor: turns rows into running workers and chores, and what they say back into rows."""
