"""From examples to token rows: tokenizers, chat templates, rendering."""
