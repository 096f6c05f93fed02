"""The whole server in simulated worlds with faults, and proof that this finds planted bugs."""
