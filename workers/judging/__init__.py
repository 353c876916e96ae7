"""Chat models and other models that judge, label and criticise: their questions and answers."""
