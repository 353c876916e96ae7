"""One row of a data set: the example that it says, before any tokenizer."""
