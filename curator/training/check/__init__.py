"""`curator check-trainer`: a canary, tiny model and data, that shows from one step what a trainer does with weights."""
