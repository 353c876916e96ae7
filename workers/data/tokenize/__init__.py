"""Turn examples into token rows: tokenizers, chat templates, rendering."""
