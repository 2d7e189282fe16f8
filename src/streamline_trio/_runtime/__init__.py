"""The trio runtime: claims runs, drives them, keeps the lease, publishes what was committed."""
