"""Score a small sample in this process and show it as the report would: to judge a spec before paying for it.

No Ray, no files but the page: the engines are started here, one after the other.
"""

import os

import numpy as np
import yaml

from curator.data import Document, FloatArray
from curator.errors import CorpusError
from curator.plan import list_sources, read_sample, resolve_models
from curator.report.html import ReportData, render_report
from curator.spec import CurationSpec
from curator.stages.score import check_scores, score_documents
from curator.tokens.tokenizer import EncodedDocument
