"""Results as typed records: what was measured, and with which confidence."""
