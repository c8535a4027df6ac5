"""Score a small sample in this process and show it as the report would: to judge a spec before paying for it.

No Ray and no files: the engines are started here, one after the other, over the first documents of the plan's sample.
"""

import os
from collections.abc import Callable

import numpy as np
import yaml

from curator.data import Document, FloatArray, IntArray
from curator.errors import CorpusError
from curator.plan import list_sources, read_sample, resolve_models
from curator.spec import CurationSpec
from curator.stages.score import check_scores, score_documents
from curator.tokens.tokenizer import EncodedDocument
