"""The real ksmd of this machine, stepped batch by batch, for comparison."""
