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
corpus: {kind: jsonl, uri: "PATH or upload", text_field: text}
max_minutes: 30
""",
}
