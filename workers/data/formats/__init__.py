"""Files of data as JSON-like rows, whatever their format."""
