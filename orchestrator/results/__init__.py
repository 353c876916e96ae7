"""Results of a run as typed records with confidence intervals."""
