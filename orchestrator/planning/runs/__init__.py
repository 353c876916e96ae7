"""The stage runs of a recipe: stages and their variants, as a graph of products."""
