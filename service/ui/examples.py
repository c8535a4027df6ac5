"""The specs that the form for a new job begins with: complete but for the corpus."""

from collections.abc import Mapping

SPECS: Mapping[str, str] = {
    "curate": """\
name: first-job
corpus: {kind: jsonl, uri: "PATH or upload", text_field: text}
models:
  reference: {engine: bigram}                  # trained on good data
  base: {engine: bigram, model: unigram}       # about to be trained
policy: {kind: excess_loss, keep: 0.6}
""",
    "train_reference": """\
base: PATH or hub name
corpus: {kind: jsonl, uri: "PATH or upload", text_field: text}   # or dataset: PATH of a curated one, with its weights
method: full                 # or lora: adapters, merged at last; they want a learning_rate of about 0.0005
eval_every: 50               # steps between two measurements of the held-out loss; the best step is published
patience: 3                  # measurements without a new lowest one after which the training ends
max_minutes: 30
""",
}
