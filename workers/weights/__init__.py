"""Full weights on their way to the engines: packing, checksums, transfer."""
