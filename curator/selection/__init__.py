"""From stored scores to token weights: exact cuts over any population, then weights for a piece of a shard.

histogram   scores rounded to float16 and counted in 65,536 mergeable bins
ties        which of the tokens exactly at the cut are kept, by a hash that no partition of the work changes
pieces      a row group's scores and rows, and the populations (scopes) they belong to
cuts        two passes over all pieces, each a merge of small counts, give the cuts
apply       cuts and a piece give scores and weights

Two passes, because the tokens exactly at the boundary can only be counted once the boundary is known:

    counts     = merge_counts(count_piece(policy, piece) for piece in pieces)
    boundaries = find_boundaries(policy, counts)
    ties       = merge_ties(count_ties(policy, piece, boundaries) for piece in pieces)
    cuts       = find_cuts(policy, counts, ties)
    score_T, weights_T = apply_policy(policy, piece, cuts.by_scope)    # each piece; weights_T * cuts.scale is published
"""
