"""From text to tokens: any fast tokenizer, the bytes each token covers, and windows for long documents.

    tokenizer.py    `load_tokenizer` and `Tokenizer`: ids and `token_bytes` of documents
    sources.py      finding a tokenizer: directory, tokenizer.json, .gguf, hub name
    definition.py   what a tokenizer.json means: fingerprint, added ids, text that must not forge a special token
    surfaces.py     the bytes that each id stands for, and laying tokens over a text
    probe.py        refusing, at load, a tokenizer whose tokens cannot partition text
    windows.py      documents longer than a model's context
    projection.py   log-probs of one tokenisation laid onto the tokens of another

Invariant of the folder: the `token_bytes` of a document sum to the length of its UTF-8 text, and were checked
against that text byte by byte. Nothing is exported here, so that importing the folder loads no library.
"""
