"""Which rows a data set gives up, and which are held out."""
