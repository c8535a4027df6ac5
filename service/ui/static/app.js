// What every page shares: requests with the CSRF token, copy buttons, theme, local times, the list's refresh.

const csrf = document.querySelector('meta[name="csrf-token"]')?.content ?? "";

/** A refusal of the service (RFC 9457), or of the network. */
export class Refusal extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `the service answered ${status}`);
    this.status = status;
    this.errors = problem.errors ?? [];
  }
}

/** Fetch JSON of /v1 with the session; throws Refusal. */
export async function api(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const sent = { Accept: "application/json", ...headers };
  if (method !== "GET") sent["X-CSRF-Token"] = csrf;
  if (json !== undefined) {
    sent["Content-Type"] = "application/json";
    body = JSON.stringify(json);
  }
  let response;
  try {
    response = await fetch(path, { method, headers: sent, body, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, { detail: "the service cannot be reached; check the connection and try again" });
  }
  if (response.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
  const text = await response.text();
  let content = null;
  try {
    content = text ? JSON.parse(text) : null;
  } catch {
    content = { detail: `the service answered ${response.status} without JSON` };
  }
  if (!response.ok) throw new Refusal(response.status, content ?? {});
  return content;
}

/** An element with text and attributes; text is never markup. */
export function element(name, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

const NOTHING = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** As in filters.py. */
export const exact = (value) => (value == null ? NOTHING : whole.format(value));

export function count(value) {
  if (value == null) return NOTHING;
  if (Math.abs(value) < 1000) return whole.format(value);
  let unit;
  for (unit of ["K", "M", "G", "T"]) {
    value /= 1000;
    if (Math.abs(value) < 999.5) break;
  }
  const digits = Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0;
  return `${value.toFixed(digits)}\u00a0${unit}`;
}

export function share(value) {
  if (value == null || Number.isNaN(value)) return NOTHING;
  if (value > 0 && value < 0.001) return "<0.1%";
  if (value > 0.999 && value < 1) return ">99.9%";
  return `${(100 * value).toFixed(1)}%`;
}

export function duration(seconds) {
  if (seconds == null) return NOTHING;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const rounded = Math.round(seconds);
  for (const [size, unit, partSize, partUnit] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (rounded < size) continue;
    const part = Math.floor((rounded % size) / partSize);
    return `${Math.floor(rounded / size)} ${unit}${part ? ` ${part} ${partUnit}` : ""}`;
  }
  return `${rounded} s`;
}

export function bytes(size) {
  if (size == null) return NOTHING;
  let unit = "bytes";
  for (const next of ["kB", "MB", "GB", "TB", "PB"]) {
    if (size < 1000) break;
    size /= 1000;
    unit = next;
  }
  return `${unit === "bytes" || size >= 100 ? Math.round(size) : size.toFixed(1)}\u00a0${unit}`;
}

/** A short message that a screen reader says too. */
let toastTimer;
export function say(text) {
  const toast = byId("toast");
  toast.textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (toast.textContent = ""), 4000);
}

/** Ask before something that cannot be undone. */
export function confirmed(title, text, yes) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

/** Fill a table page by page; `row` makes one <tr>. */
export async function fillPaged({ path, rows, more, row, onPage = () => {} }) {
  let cursor = null;
  const load = async () => {
    const page = await api(path + (cursor ? `${path.includes("?") ? "&" : "?"}cursor=${encodeURIComponent(cursor)}` : ""));
    rows.append(...page.data.map(row));
    cursor = page.next_cursor;
    more.hidden = !page.has_more;
    onPage(page);
    return page;
  };
  more.querySelector("button").onclick = () => load().catch((error) => say(error.message));
  return load();
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    say("Copied");
  } catch {
    const code = button.parentElement.querySelector("code") ?? button;
    getSelection().selectAllChildren(code); // clipboards need https; the text is selected instead
    say("Selected: copy it with Ctrl+C");
  }
});

const themes = ["system", "light", "dark"];
const themeButton = byId("theme");
const showTheme = () => (themeButton.querySelector("span").textContent = `Theme: ${document.documentElement.dataset.theme ?? "system"}`);
showTheme();
themeButton.addEventListener("click", () => {
  const root = document.documentElement;
  const next = themes[(themes.indexOf(root.dataset.theme ?? "system") + 1) % themes.length];
  if (next === "system") delete root.dataset.theme;
  else root.dataset.theme = next;
  try {
    localStorage.setItem("curator-theme", next);
  } catch {
    // Storage is blocked: the choice lasts for this page.
  }
  showTheme();
});

/** Moments in the reader's own time zone. */
function localise(root) {
  for (const time of root.querySelectorAll("time")) {
    const at = new Date(time.dateTime);
    time.title = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
    if (!time.textContent.endsWith("UTC")) continue;
    time.textContent = /^\d\d:/.test(time.textContent)
      ? at.toLocaleTimeString(undefined, { timeStyle: "medium", hour12: false })
      : at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  }
}
localise(document);
document.addEventListener("htmx:afterSettle", () => localise(document));

/** Ask the server for a region anew; skipped while the page is not seen. */
export const refresh = (id) => document.visibilityState === "visible" && window.htmx?.trigger(`#${id}`, "refresh");

// A region that has not changed is left alone: selections, hover and focus stay.
const seen = new Map();
document.addEventListener("htmx:beforeSwap", (event) => {
  const { requestConfig, xhr } = event.detail;
  if (requestConfig.triggeringEvent?.type !== "refresh") return;
  if (xhr.status === 401 || xhr.responseURL.includes("/login")) return location.assign("/login");
  const key = requestConfig.path;
  if (seen.get(key) === xhr.responseText) event.detail.shouldSwap = false;
  seen.set(key, xhr.responseText);
});

if (byId("jobs")) {
  setInterval(() => refresh("jobs"), 3000);
  document.addEventListener("visibilitychange", () => refresh("jobs"));
  document.addEventListener("htmx:afterSettle", () => {
    const text = byId("jobs").dataset.summary;
    if (byId("job-count").textContent !== text) byId("job-count").textContent = text;
  });
}
