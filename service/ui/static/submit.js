// The submit form: checks the spec as it is typed, estimates on request, uploads a corpus, submits.
import { api, byId, bytes, duration, element, exact, count, say } from "/static/app.js";

const CHECK_AFTER_MS = 350;
const form = byId("submit-form");
const spec = byId("spec");
const verdict = byId("verdict");
const submitButton = byId("submit-button");
const estimateButton = byId("estimate-button");
const kind = () => form.elements.kind.value;
let timer, running;

/** The spec as a JSON text: as typed where it is JSON, so that nothing of it is lost; YAML is read by the service. */
async function parse(signal) {
  const text = spec.value;
  try {
    JSON.parse(text);
    return text;
  } catch {
    if (/^\s*\{\s*"/.test(text)) return text; // JSON with a slip: the service says where
  }
  const content = await api("/spec", { method: "POST", body: text, headers: { "Content-Type": "text/plain" }, signal });
  return JSON.stringify(content);
}

const JSON_BODY = { "Content-Type": "application/json" };

function show(...parts) {
  verdict.replaceChildren(...parts);
}

function notice(className, title, ...parts) {
  return element("div", { className: `notice ${className}` }, element("p", {}, element("strong", { text: title })), ...parts);
}

function showRefusal(error) {
  const faults = error.errors ?? [];
  const list = element("ul");
  for (const fault of faults) {
    list.append(element("li", {}, element("code", { text: fault.path || "spec" }), " ", fault.message));
  }
  const title = faults.length ? `${faults.length === 1 ? "1 fault" : `${faults.length} faults`} in the spec` : error.message;
  show(notice("error", title, ...(faults.length ? [list] : [])));
  spec.setAttribute("aria-invalid", "true");
}

function showEstimate(plan) {
  const facts = element("dl", { className: "estimate" });
  const fact = (label, value) => facts.append(element("dt", { text: label }), element("dd", { text: value }));
  fact("Time", plan.eta_s == null ? "not known" : `about ${duration(plan.eta_s)}`);
  fact("Tokens", count(plan.tokens));
  fact("Shards", exact(plan.shards));
  fact("Disk", `${bytes(plan.disk_bytes)} of ${bytes(plan.free_bytes)} free`);
  if (plan.workers != null) fact("Workers", exact(plan.workers));
  for (const model of plan.models ?? []) {
    fact(model.name, model.tokens_per_s == null ? model.engine : `${model.engine}, ${count(model.tokens_per_s)} tokens/s`);
  }
  return facts;
}

function showValid(answer, estimated) {
  spec.removeAttribute("aria-invalid");
  const parts = [];
  if (estimated) parts.push(showEstimate(answer));
  if (answer.warnings?.length) parts.push(element("ul", {}, ...answer.warnings.map((text) => element("li", { text }))));
  show(notice("good", `“${answer.name ?? "The job"}” is valid`, ...parts));
}

async function check(plan) {
  clearTimeout(timer);
  running?.abort();
  const mine = (running = new AbortController());
  if (!spec.value.trim()) {
    spec.removeAttribute("aria-invalid");
    return show(element("p", { className: "muted small", text: "The spec is checked as you type." }));
  }
  if (plan) show(element("p", { className: "muted", text: "Estimating: reading a sample of the corpus…" }));
  estimateButton.disabled = plan;
  try {
    const content = await parse(mine.signal);
    const query = new URLSearchParams({ kind: kind() });
    if (!plan) query.set("plan", "false");
    const answer = await api(`/v1/jobs:validate?${query}`, { method: "POST", body: content, headers: JSON_BODY, signal: mine.signal });
    showValid(answer, plan);
  } catch (error) {
    if (error.name !== "AbortError") showRefusal(error);
  } finally {
    if (mine === running) estimateButton.disabled = false;
  }
}

spec.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => check(false), CHECK_AFTER_MS);
});
estimateButton.addEventListener("click", () => check(true));

const examples = new Map([...document.querySelectorAll("template.example")].map((each) => [each.dataset.kind, each.content.textContent]));
for (const input of form.querySelectorAll('input[name="kind"]')) {
  input.addEventListener("change", () => {
    if (!spec.value.trim() || [...examples.values()].some((text) => text.trim() === spec.value.trim())) spec.value = examples.get(kind());
    check(false);
  });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  clearTimeout(timer);
  running?.abort();
  submitButton.disabled = true;
  try {
    const content = await parse();
    // One key per text: a second click, or a retry after a cut answer, finds the same job.
    const key = (form.dataset.key ??= crypto.getRandomValues(new Uint32Array(4)).join("-"));
    const job = await api(`/v1/jobs?kind=${kind()}`, { method: "POST", body: content, headers: { ...JSON_BODY, "Idempotency-Key": key } });
    location.assign(`/jobs/${job.id}`);
  } catch (error) {
    delete form.dataset.key;
    showRefusal(error);
    submitButton.disabled = false;
    spec.focus();
  }
});
spec.addEventListener("input", () => delete form.dataset.key);

/** Put the upload's address where the spec says corpus.uri, in JSON and YAML; the rest of the text stays. */
function fillUri(uri) {
  const formats = { parquet: "parquet", txt: "text" };
  const format = formats[uri.match(/\.(parquet|txt)(\.|$)/)?.[1]] ?? "jsonl";
  try {
    const content = JSON.parse(spec.value);
    content.corpus = { kind: format, ...content.corpus, uri };
    spec.value = JSON.stringify(content, null, 2);
  } catch {
    const inCorpus = /^(corpus:(?:[^\n]*|(?:\s*\n[ \t]+[^\n]*)*?)[\s{,]uri:[ \t]*)("[^"\n]*"|'[^'\n]*'|[^\s,}#]+)/m;
    if (inCorpus.test(spec.value)) spec.value = spec.value.replace(inCorpus, (_, before) => `${before}"${uri}"`);
    else spec.value = `corpus: {kind: ${format}, uri: "${uri}"}\n${spec.value}`;
  }
  check(false);
}

byId("upload").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (!file) return;
  const bar = byId("upload-progress");
  const state = byId("upload-state");
  const request = new XMLHttpRequest(); // fetch cannot tell how far an upload has got
  request.open("POST", `/v1/uploads?filename=${encodeURIComponent(file.name)}`);
  request.setRequestHeader("X-CSRF-Token", document.querySelector('meta[name="csrf-token"]').content);
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.upload.onprogress = (progress) => (bar.value = progress.loaded / (progress.total || 1));
  request.onloadend = () => {
    bar.hidden = true;
    let answer = {};
    try {
      answer = JSON.parse(request.responseText);
    } catch {
      // No answer, or one of a proxy: told below by its status.
    }
    if (request.status === 201) {
      state.textContent = `${file.name}, ${bytes(answer.bytes)}, is now corpus.uri`;
      fillUri(answer.uri);
    } else {
      state.textContent = `not uploaded: ${answer.detail ?? "the service cannot be reached"}`;
      say("The upload failed");
    }
  };
  state.textContent = `uploading ${file.name}`;
  bar.value = 0;
  bar.hidden = false;
  request.send(file);
});
