"""Weight sync from trainers to engines: packing, checksums and transfer of full weights."""
