"""Extensions: parts that are found by the name of a module of ours, or by an import path."""
