"""The benchmark: what Kopsline takes, beside its goals and beside bare kops. Run by tools/bench; asserts nothing."""
