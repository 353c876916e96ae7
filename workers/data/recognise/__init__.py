"""Recognise the meaning of the rows of a data set by the names of their fields."""
