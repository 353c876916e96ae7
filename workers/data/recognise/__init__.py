"""What the rows of a data set mean, recognised by the names of their fields."""
