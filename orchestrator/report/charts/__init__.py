"""Charts of the page and plots of a run, drawn as SVG and PNG from its metrics."""
