"""Score a small sample in this process and show it as the report would: to judge a spec before paying for it.

No Ray and no files: the engines are started here, one after the other, over the first documents of the planning sample.
The cut is taken over the sample, so it only resembles the cut of a run.
"""

import os

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from curator import tables
from curator.data import Document, FloatArray
from curator.errors import CorpusError
from curator.outputs.parquet import build_rows
from curator.plan import list_sources, read_sample
from curator.policies import policy_features
from curator.report.html import ReportData, render_report
from curator.report.samples import choose_samples
from curator.report.statistics import measure_shard
from curator.resolve import resolve_models
from curator.selection.apply import apply_policy
from curator.spec import CurationSpec
from curator.stages.calibrate import calibrate_pieces
from curator.stages.pieces import RowGroup, as_piece
from curator.stages.projected import OwnTokens, encode_own, project_scores
from curator.stages.score import check_scores, score_documents
from curator.tokens.tokenizer import EncodedDocument, load_tokenizer

_NO_COLUMNS = pa.schema([])


def make_preview(spec: CurationSpec, rows: int) -> tuple[str, str]:
    """Score up to `rows` documents with every model of the spec.

    Args:
        spec: the job; its output is neither read nor written.
        rows: documents to score; fewer if the planning sample holds fewer.

    Returns:
        The page as HTML, and a summary in a few lines of text.
    """
    sources = list_sources(spec)
    tokenizer, identity, models = resolve_models(spec)
    documents = read_sample(spec.corpus, sources, tokenizer).documents[:rows]
    pairs = zip(documents, tokenizer.encode([d.text for d in documents]), strict=True)
    usable = [(document, encoded) for document, encoded in pairs if isinstance(encoded, EncodedDocument)]
    if not usable:
        raise CorpusError("corpus: none of the sample's rows can be tokenised; `curator run` would quarantine them all")
    tokens = _token_table(usable)
    ids = [encoded.input_ids for _, encoded in usable]
    offsets = np.cumsum([0, *(len(ids_T) for ids_T in ids)])
    logprobs, features = {}, {}
    for name, config in spec.models.items():
        own = _own_tokens(spec, name, usable) if models[name].tokenizer_fingerprint is not None else None
        engine = config.build(models[name], os.cpu_count() or 1)
        scores = score_documents(
            engine,
            ids if own is None else own.ids,
            models[name].context,
            models[name].left_context,
            identity.bos_id is not None if own is None else own.has_bos,
            lambda _: None,
        )
        check_scores(scores, name, 0)
        if own is not None:
            scores, unscored = project_scores(scores, own)
            check_scores(scores, name, 0, unscored)
        logprobs[name] = _half_lists([s.logprobs_T for s in scores], offsets)
        for column, (model, feature) in policy_features(spec.policy).items():
            if model == name:
                features[column] = _half_lists([getattr(s, f"{feature}_T") for s in scores], offsets)
    group = RowGroup(0, tokens, logprobs, features)
    return _render(spec, group, {name: model.model_dump() for name, model in models.items()})


def _half_lists(values: list[FloatArray], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    return tables.list_array(np.concatenate(values).astype(np.float16), offsets)


def _own_tokens(spec: CurationSpec, name: str, usable: list[tuple[Document, EncodedDocument]]) -> OwnTokens:
    """The documents in a model's own tokens."""
    config = spec.models[name]
    tokenizer = load_tokenizer(config.tokenizer_source(), config.revision, spec.tokens)
    documents = [document for document, _ in usable]
    encoded = encode_own(tokenizer, [d.text for d in documents], [d.doc_id for d in documents], name, "the sample")
    own = OwnTokens(tokenizer.bos_id is not None)
    own.add(encoded, [ours.token_bytes for _, ours in usable])
    return own


def _token_table(usable: list[tuple[Document, EncodedDocument]]) -> pa.Table:
    offsets = np.cumsum([0, *(len(encoded.input_ids) for _, encoded in usable)])
    columns = {
        "doc_id": pa.array([document.doc_id for document, _ in usable], pa.string()),
        "source": pa.array([document.source for document, _ in usable], pa.string()),
        "text": pa.array([document.text for document, _ in usable], pa.large_string()),
        "input_ids": tables.list_array(np.concatenate([encoded.input_ids for _, encoded in usable]), offsets),
        "token_bytes": tables.list_array(np.concatenate([encoded.token_bytes for _, encoded in usable]), offsets),
    }
    return pa.table(columns, schema=tables.token_schema(_NO_COLUMNS))


def _render(spec: CurationSpec, group: RowGroup, models: dict[str, dict[str, object]]) -> tuple[str, str]:
    """Weigh the sample by a cut of its own and draw it."""
    tokens, logprobs = group.tokens, group.logprobs
    piece = as_piece(spec.policy, 0, group)
    cuts = calibrate_pieces(spec.policy, lambda: [piece])
    score_T, weights_T = apply_policy(spec.policy, piece, cuts.by_scope)
    weights_T *= np.float32(cuts.scale)
    table = build_rows(tables.curated_schema(_NO_COLUMNS, list(logprobs)), tokens, logprobs, weights_T)
    statistics = measure_shard(
        sources=tokens.column("source").to_pylist(),
        offsets=piece.offsets,
        token_bytes_T=tables.flat(tokens.column("token_bytes"))[0],
        score_T=score_T,
        weights_T=weights_T,
        logprobs={name: tables.flat(column)[0].astype(np.float32) for name, column in logprobs.items()},
    )
    html = render_report(
        ReportData(
            name=f"{spec.name} (preview of {tokens.num_rows} documents)",
            statistics=statistics,
            cuts=cuts.by_scope,
            policy=spec.policy.model_dump(mode="json"),
            models=models,
            samples=choose_samples([table], spec.policy, cuts.by_scope),
            spec_yaml=yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        )
    )
    total = statistics.total
    share = total.kept / total.scored if total.scored else 0.0
    return html, f"sample     {total.documents:,} documents, {total.tokens:,} tokens, kept {total.kept:,} ({share:.2%})"
