"""The pure core: documents, rules and decisions. No I/O, no clock, no randomness, no await."""
