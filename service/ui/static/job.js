// The page of one job: live state, numbers and log while it runs; results, shards and actions.
import { api, byId, bytes, confirmed, count, duration, element, exact, fillPaged, refresh, say, share } from "/static/app.js";
import { Counts, drawHistogram, drawParts, drawSources, signed } from "/static/charts.js";

const job = byId("job");
const base = `/v1/jobs/${job.dataset.job}`;
const ENDED = new Set(["completed", "failed", "cancelled"]);
const HISTORY = 600; // events, about ten minutes
const LOG_CHARACTERS = 400_000;
const COLOURS = /\x1b\[[0-9;]*m/g; // of a terminal
const labels = { queued: "queued", validating: "validating", in_progress: "in progress", finalizing: "finalizing", completed: "completed", cancelling: "cancelling", cancelled: "cancelled", failed: "failed" };

// ------------------------------------------------------------------------------------------------ live

/** A stream that is open only while somebody looks, and goes on where it was: browsers allow six connections in all. */
function follow(path, after, kinds, onRecord) {
  let source = null;
  let last = after;
  let ended = false;
  const open = () => {
    if (source || ended || document.visibilityState !== "visible") return;
    source = new EventSource(`${base}/${path}?after=${last}`);
    for (const kind of kinds) {
      source.addEventListener(kind, (event) => {
        const record = JSON.parse(event.data);
        last = record.id;
        onRecord(record);
      });
    }
  };
  const close = () => {
    source?.close();
    source = null;
  };
  document.addEventListener("visibilitychange", () => (document.visibilityState === "visible" ? open() : close()));
  addEventListener("pagehide", close);
  open();
  return {
    end: () => {
      ended = true;
      close();
    },
  };
}

const rates = [];
function drawRates() {
  const rated = rates.filter((rate) => rate !== null);
  byId("rate").hidden = rated.length < 3;
  if (rated.length < 3) return;
  const most = Math.max(...rates.map((rate) => rate ?? 0));
  const points = rates.map((rate, i) => `${((100 * i) / (rates.length - 1)).toFixed(2)} ${(39 - (37 * (rate ?? 0)) / most).toFixed(2)}`);
  const svg = byId("rate").querySelector("svg");
  const path = (className, d) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", "path");
    node.setAttribute("class", className);
    node.setAttribute("d", d);
    return node;
  };
  svg.replaceChildren(path("under", `M0 40L${points.join("L")}L100 40Z`), path("line", `M${points.join("L")}`));
  byId("rate-now").textContent = `${count(rated.at(-1))} tokens/s last, ${count(most)} at most`;
}

/** As describe_done in views.py. */
function describeDone({ shards_done: shardsDone, shards, tokens_done: tokensDone, tokens }) {
  const parts = [];
  if (tokens) parts.push(`${count(tokensDone)} of ${count(tokens)} tokens`);
  if (shards) parts.push(`${exact(shardsDone)} of ${exact(shards)} shards`);
  return parts.join(", ");
}

function takeProgress(progress) {
  rates.push(progress.tokens_per_s);
  if (rates.length > HISTORY) rates.shift();
  const live = (name, value) => {
    const node = document.querySelector(`[data-live="${name}"]`);
    if (node) node.textContent = value;
  };
  live("tokens_per_s", count(progress.tokens_per_s));
  live("eta_s", duration(progress.eta_s));
  live("stage", progress.stage);
  live("done", describeDone(progress));
  const [done, whole] = progress.tokens ? [progress.tokens_done, progress.tokens] : [progress.shards_done, progress.shards];
  document.querySelector("[data-live-width]")?.setAttribute("width", `${whole ? Math.min((100 * done) / whole, 100) : 0}%`);
  drawRates();
}

let status = job.dataset.terminal === "true" ? "ended" : "";
function takeEvent(event) {
  if (event.type === "progress") return takeProgress(event.data);
  if (event.type === "state" && event.data.status !== status) {
    status = event.data.status;
    byId("said").textContent = `The job is ${labels[status]}.`;
    if (ENDED.has(status)) {
      events.end();
      setTimeout(() => log.end(), 2000); // its last lines
    }
  }
  // The database follows the events within moments.
  for (const delay of [150, 1500]) setTimeout(() => refresh("job-main"), delay);
  if (event.type === "state" || event.data.state === "finished") setTimeout(loadResults, 400);
}

const logBox = byId("log");
function takeLog({ text }) {
  logBox.append(`${text.replace(COLOURS, "")}\n`);
  if (logBox.textContent.length > LOG_CHARACTERS) logBox.textContent = logBox.textContent.slice(-LOG_CHARACTERS / 2);
  if (byId("follow").checked) logBox.scrollTop = logBox.scrollHeight;
}
logBox.scrollTop = logBox.scrollHeight;
byId("follow").addEventListener("change", () => byId("follow").checked && (logBox.scrollTop = logBox.scrollHeight));

let events = { end() {} };
let log = events;
function watch() {
  events = follow("events", Number(job.dataset.eventsAfter), ["state", "stage", "progress", "message"], takeEvent);
  log = follow("logs", Number(job.dataset.logAfter), ["log"], takeLog);
}

async function loadHistory() {
  const after = Math.max(0, Number(job.dataset.eventsAfter) - HISTORY);
  const page = await api(`${base}/events?after=${after}&limit=${HISTORY}`);
  for (const event of page.data) if (event.type === "progress") rates.push(event.data.tokens_per_s);
  drawRates();
}

// ------------------------------------------------------------------------------------------------ results

function drawScores(histograms) {
  const { score, total, cut } = histograms;
  byId("scores").hidden = !score.edges.length;
  if (!score.edges.length) return;
  const counts = new Counts(score.edges, score.scored);
  const kept = total.scored ? total.kept / total.scored : NaN;
  const start = cut ?? counts.quantile(1 - kept);
  const range = counts.range(start);
  const chart = drawHistogram(counts, { range, cut: start, height: 110, label: `Scores of ${exact(counts.total)} tokens with the cut` });
  byId("scores-chart").replaceChildren(chart.element);
  byId("scores-note").textContent = `${share(kept)} of ${count(total.scored)} scored tokens kept${cut === null ? "" : `, from ${signed(cut)} up`}; heights by square root`;
  const listed = histograms.sources.filter((source) => source.score?.edges.length);
  const show = drawSources(byId("scores-sources"), listed.map((source) => ({
    name: source.name, counts: new Counts(source.score.edges, source.score.scored), tokens: source.counts.scored,
    kept: source.counts.scored ? source.counts.kept / source.counts.scored : null, cut: source.cut,
  })), { range, start });
  show(null);
  drawLosses(histograms.losses);
}

function drawLosses(losses) {
  const order = job.dataset.models.split(" ");
  const ordered = Object.entries(losses).sort(([first], [second]) => order.indexOf(first) - order.indexOf(second));
  const charts = ordered.filter(([, bins]) => bins.edges.length).map(([name, { edges, scored, kept }]) => {
    const counts = new Counts(edges, scored);
    const chart = drawParts(counts, kept, { range: [0, counts.quantile(0.995)], label: `Losses of ${name}, kept tokens filled` });
    return element("figure", { className: "loss" }, element("figcaption", { text: `Loss of ${name}, in nats` }), chart);
  });
  byId("losses").replaceChildren(...charts);
}

function shardRow(shard) {
  const digest = element("td", { className: "digest", text: shard.sha256, title: shard.sha256 });
  const copy = element("button", { type: "button", className: "copy", text: "Copy", "aria-label": `Copy the SHA-256 of shard ${shard.number}`, "data-copy": shard.sha256 });
  const link = element("a", { href: `${base}/shards/${shard.number}`, text: String(shard.number).padStart(5, "0"), "aria-label": `Download shard ${shard.number}` });
  return element("tr", {}, element("th", { scope: "row", className: "tight" }, link), element("td", { className: "right", text: exact(shard.rows) }),
    element("td", { className: "right wide-only", text: exact(shard.tokens) }), element("td", { className: "right", text: share(shard.tokens ? shard.kept_tokens / shard.tokens : null) }),
    element("td", { className: "right", text: bytes(shard.bytes) }), digest, element("td", { className: "tight" }, copy));
}

function errorRow(fault) {
  const where = fault.kind === "shard" ? `shard ${fault.shard}, ${fault.stage}` : fault.file;
  return element("tr", {}, element("th", { scope: "row" }, element("bdi", { text: where ?? "–" })), element("td", { className: "right", text: exact(fault.row) }),
    element("td", { text: fault.reason }), element("td", {}, element("bdi", { text: fault.detail ?? "" })));
}

let loading = null;
async function loadResults() {
  if (job.dataset.kind !== "curate" || loading) return;
  loading = Promise.allSettled([
    api(`${base}/histograms`).then(drawScores),
    loadTable("shards", "shard-rows", "shards-more", shardRow, `${base}/shards?limit=10`),
    loadTable("errors", "error-rows", "errors-more", errorRow, `${base}/errors?limit=20`),
  ]);
  const results = await loading;
  loading = null;
  for (const { reason } of results) if (reason && ![404, 409].includes(reason.status)) say(reason.message);
}

async function loadTable(section, rows, more, row, path) {
  byId(rows).replaceChildren();
  const page = await fillPaged({ path, rows: byId(rows), more: byId(more), row });
  byId(section).hidden = !page.data.length;
}

// ------------------------------------------------------------------------------------------------ actions

const actions = {
  cancel: {
    ask: ["Cancel this job?", "Shards that are published stay; resuming continues from there.", "Cancel job"],
    run: () => api(`${base}/cancel`, { method: "POST" }),
  },
  resume: { run: () => api(`${base}/resume`, { method: "POST" }).then(() => location.reload()) },
  delete: {
    ask: ["Delete this job?", "Its record, log and events go, and its dataset where it lies in the job’s own directory.", "Delete job"],
    run: () => api(base, { method: "DELETE" }).then(() => location.assign("/")),
  },
};
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-action]");
  if (!button) return;
  const action = actions[button.dataset.action];
  if (action.ask && !(await confirmed(...action.ask))) return;
  button.disabled = true;
  try {
    await action.run();
    refresh("job-main");
  } catch (error) {
    say(error.message);
    button.disabled = false;
  }
});

loadHistory().catch(() => {}); // a chart less; the log of events itself is told by the stream
if (job.dataset.terminal !== "true") watch();
loadResults();
