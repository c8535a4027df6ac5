"""What runs on the workers: one file per stage, each a picklable `Stage` for `cluster.Pool.map`.

tokenize   corpus rows -> token shards, with the rows that could not become documents
score      token shards -> one model's score shards
calibrate  score shards -> histograms, merged into cuts
select     tokens + scores + cuts -> curated shards
"""
