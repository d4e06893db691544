"""Real input: live processes, dumps and captures."""
