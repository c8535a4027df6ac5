"""`curator train-reference`: tune a model on good data, for one process or many."""
