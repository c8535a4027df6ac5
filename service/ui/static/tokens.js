// The page of one job's tokens: layers, samples, and a cut that can be moved over what was scored.
import { api, byId, element, exact, share } from "/static/app.js";
import { Counts, drawHistogram, drawSources, signed } from "/static/charts.js";
import { describeLayer, TokenMap } from "/static/map.js";

const DOCUMENTS = 6;
const look = byId("look");
const policy = JSON.parse(look.dataset.policy);
const base = `/v1/jobs/${look.dataset.job}`;
const slider = byId("threshold");
const state = { maps: [], layer: "score", cut: null }; // cut null: as the job decided

const layerLabel = (name) => {
  if (name === "score") return policy.kind === "excess_loss" ? "Excess loss (score)" : "Score";
  if (name === "excess") return "Excess loss";
  return name === "weight" ? "Weight" : `Loss of ${name.slice("loss_".length)}`;
};

// ------------------------------------------------------------------------------------------------ the readout

const readout = byId("readout");
const words = { k: "kept", d: "dropped", u: "no score" };
function showReadout(token) {
  readout.hidden = token === null;
  if (token === null) return;
  const parts = [element("bdi", { className: "quote", text: token.text }), element("b", { text: words[token.state] })];
  token.parts.forEach((facts, i) => {
    if (i) parts.push(element("small", { text: "same character:" }));
    for (const [label, value] of facts) parts.push(element("span", {}, element("small", { text: label }), value));
  });
  readout.replaceChildren(...parts);
}

// ------------------------------------------------------------------------------------------------ documents

function drawLayers(names) {
  const fieldset = byId("layers");
  if (fieldset.querySelector("label")) return;
  for (const name of names) {
    const input = element("input", { type: "radio", name: "layer", value: name });
    input.checked = name === state.layer;
    input.addEventListener("change", () => paint(name));
    fieldset.append(element("label", {}, input, element("span", { text: layerLabel(name) })));
  }
}

function drawScale(layer) {
  const names = layer.diverging ? ["n5", "n4", "n3", "n2", "n1", "p1", "p2", "p3", "p4", "p5"] : ["q1", "q2", "q3", "q4", "q5"];
  const steps = element("span", { className: "steps", "aria-hidden": "true" }, ...names.map((name) => element("i", { className: name })));
  byId("scale").replaceChildren(layer.low, steps, layer.high);
}

function paint(name) {
  state.layer = name;
  performance.mark("paint");
  for (const map of state.maps) map.paint(name);
  drawScale(state.layers.get(name));
  performance.measure("tokens: layer", "paint");
}

function drawDocument(facts) {
  const map = new TokenMap(facts, state.layers, showReadout);
  map.layer = state.layer;
  map.paint(state.layer);
  const heading = element("h3", {}, element("bdi", { text: facts.source || "(no source)" }), element("span", {}, element("bdi", { text: facts.doc_id })));
  map.note = element("p");
  map.box.setAttribute("aria-label", `Tokens of ${facts.doc_id}; selected ones are kept`);
  byId("documents").append(element("article", { className: "document" }, element("header", {}, heading, map.note), map.box));
  return map;
}

function noteShares() {
  for (const map of state.maps) {
    const { facts } = map;
    const kept = state.cut === null ? facts.kept_tokens / facts.scored_tokens : map.shown().kept / map.shown().scored;
    const extent = facts.truncated ? `first ${exact(facts.tokens.length)} of ${exact(facts.total_tokens)} tokens` : `${exact(facts.total_tokens)} tokens`;
    const where = facts.cut === null ? [] : [` · cut ${signed(state.cut ?? facts.cut)}`];
    map.note.replaceChildren(element("b", { text: share(kept) }), ` kept · ${extent}`, ...where, ` · shard ${facts.shard}, row ${facts.row}`);
  }
}

async function loadDocuments(select) {
  const status = byId("map-state");
  status.textContent = "Loading…";
  let preview;
  try {
    preview = await api(`${base}/preview?select=${select}&limit=${DOCUMENTS}`);
  } catch (error) {
    status.textContent = error.message;
    return;
  }
  performance.mark("draw");
  const names = new Set(preview.documents.flatMap((facts) => Object.keys(facts.layers)));
  if (policy.kind === "excess_loss" && names.has("score")) names.delete("excess"); // the same numbers twice
  const ordered = ["score", "excess", ...[...names].filter((name) => name.startsWith("loss_")), "weight"];
  state.layers = new Map(ordered.filter((name) => names.has(name) || name === "weight").map((name) => [name, describeLayer(name, preview.scale, policy)]));
  if (!state.layers.has(state.layer)) state.layer = state.layers.keys().next().value;
  drawLayers(state.layers.keys());
  drawScale(state.layers.get(state.layer));
  byId("documents").replaceChildren();
  state.maps = preview.documents.map(drawDocument);
  if (state.cut !== null) for (const map of state.maps) map.cutAt(state.cut);
  noteShares();
  performance.measure("tokens: draw", "draw");
  const among = preview.seen_documents ? ` of ${exact(preview.seen_documents)} looked at` : "";
  status.textContent = state.maps.length ? `${state.maps.length} documents${among}. Point at a token, or focus one and use the arrow keys, to read its numbers.` : preview.note ?? "No document to show.";
}

for (const input of document.querySelectorAll('input[name="select"]')) {
  input.addEventListener("change", () => loadDocuments(input.value));
}

// ------------------------------------------------------------------------------------------------ the cut

function describeUse(kept) {
  const usable = "keep" in policy && Number.isFinite(kept);
  byId("use-cut").hidden = !usable || state.cut === null;
  if (byId("use-cut").hidden) return;
  const text = `${JSON.stringify({ kind: policy.kind, ...policy, keep: Number(kept.toFixed(4)) }, null, 1).replace(/\n */g, " ")}`;
  byId("use-cut-text").textContent = text;
  byId("use-cut-copy").dataset.copy = text;
}

function drawCut(histograms) {
  const { edges, scored } = histograms.score;
  if (!edges.length) return;
  const counts = new Counts(edges, scored);
  const { total, cut } = histograms;
  const jobShare = total.scored ? total.kept / total.scored : NaN;
  const start = cut ?? counts.quantile(1 - jobShare);
  const range = counts.range(start);
  const chart = drawHistogram(counts, { range, cut: start, label: `Scores of ${exact(counts.total)} tokens; those right of the cut are kept` });
  byId("plot").replaceChildren(chart.element);
  const listed = histograms.sources.filter((source) => source.score?.edges.length);
  const moveSources = drawSources(byId("sources"), listed.map((source) => ({
    name: source.name, counts: new Counts(source.score.edges, source.score.scored), tokens: source.counts.scored,
    kept: source.counts.scored ? source.counts.kept / source.counts.scored : null, cut: source.cut,
  })), { range, start });
  byId("sources-box").hidden = !listed.length;
  byId("cut-box").hidden = false;
  [slider.min, slider.max] = range;
  slider.step = (range[1] - range[0]) / 1000;

  let frame = 0;
  const show = () => {
    frame = 0;
    performance.mark("cut");
    const atJob = state.cut === null;
    const score = atJob ? start : state.cut;
    const kept = atJob ? jobShare : counts.shareAbove(score);
    byId("kept-share").textContent = share(kept);
    byId("threshold-value").textContent = signed(score);
    slider.setAttribute("aria-valuetext", `score ${signed(score)}, ${share(kept)} kept`);
    byId("reset").disabled = atJob;
    chart.move(score);
    moveSources(state.cut);
    describeUse(kept);
    for (const map of state.maps) map.cutAt(state.cut);
    noteShares();
    performance.measure("tokens: cut", "cut");
  };
  slider.addEventListener("input", () => {
    state.cut = Number(slider.value);
    frame ||= requestAnimationFrame(show);
  });
  byId("reset").addEventListener("click", () => {
    state.cut = null;
    slider.value = start;
    show();
    slider.focus();
  });
  slider.value = start;
  byId("cut-note").textContent = explainCut(histograms, jobShare);
  show();
}

function explainCut({ cut, cuts, more_cuts: more, shards, planned_shards: planned }, jobShare) {
  const parts = [];
  if (cut === null && cuts.length + more > 1) parts.push(`The job has ${exact(cuts.length + more)} cuts, one for each ${policy.scope}; the slider tries one for all.`);
  else if (cut === null) parts.push("The job has no single cut; the slider tries one.");
  else parts.push(`The job’s cut is ${signed(cut)} and keeps ${share(jobShare)}.`);
  if (policy.soft) parts.push("Its weights are soft: they rise through the cut instead of switching.");
  if (policy.kind === "threshold") parts.push("It keeps a fixed range of scores; the slider tries a lower bound alone.");
  if (shards < planned) parts.push(`Counted so far: ${exact(shards)} of ${exact(planned)} shards.`);
  return parts.join(" ");
}

await Promise.all([
  loadDocuments(document.querySelector('input[name="select"]:checked').value),
  api(`${base}/histograms`).then(drawCut, (error) => {
    byId("cut-box").hidden = false;
    byId("cut-note").textContent = error.message;
  }),
]);
