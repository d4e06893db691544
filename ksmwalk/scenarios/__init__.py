"""Scenarios: small programs for a few processes and the KSM daemon, run in the model, recorded and compared."""
