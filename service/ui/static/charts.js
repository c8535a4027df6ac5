// Histograms with a cut, and what a cut at any score would keep. SVG by attributes: the page allows no inline style.

const SVG = "http://www.w3.org/2000/svg";
const made = (name, attributes = {}, text) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
let lastId = 0;

/** Scores of both signs, so that 1.250 and −0.500 align. */
export const signed = (value, digits = 3) => (value == null ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`);

/**
 * Counts by bin as a function of a cut.
 * edges: in rising order; counts[i] lies between edges[i] and edges[i + 1].
 */
export class Counts {
  constructor(edges, counts) {
    this.edges = edges;
    this.counts = counts;
    this.above = new Float64Array(counts.length + 1); // tokens at or above edge i
    for (let i = counts.length - 1; i >= 0; i -= 1) this.above[i] = this.above[i + 1] + counts[i];
    this.total = this.above[0];
  }

  /** Share of tokens at or above a score; inside a bin tokens count as spread evenly. */
  shareAbove(score) {
    if (!this.total) return NaN;
    const { edges } = this;
    if (score <= edges[0]) return 1;
    if (score >= edges[edges.length - 1]) return 0;
    let low = 0, high = edges.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (edges[middle] <= score) low = middle;
      else high = middle;
    }
    const inBin = (edges[low + 1] - score) / (edges[low + 1] - edges[low]);
    return (this.above[low + 1] + this.counts[low] * inBin) / this.total;
  }

  /** The score below which a share of the tokens lies, at a bin's edge. */
  quantile(part) {
    const target = (1 - part) * this.total;
    let i = 0;
    while (i < this.counts.length - 1 && this.above[i + 1] > target) i += 1;
    return this.edges[i];
  }

  /** A range that shows nearly all tokens and the cut, never empty. */
  range(cut) {
    let low = this.quantile(0.005), high = this.quantile(0.995);
    if (cut != null) [low, high] = [Math.min(low, cut), Math.max(high, cut)];
    const pad = Math.max((high - low) * 0.04, 0.125);
    return [low - pad, high + pad];
  }
}

/** Tokens per unit of score in each bin; bins differ in width far from 0. */
const densities = (counts) => counts.counts.map((tokens, i) => tokens / (counts.edges[i + 1] - counts.edges[i]));
const visible = (counts, [low, high]) => counts.counts.map((_, i) => i).filter((i) => counts.edges[i + 1] > low && counts.edges[i] < high);

function highest(counts, range) {
  const dense = densities(counts);
  return Math.max(...visible(counts, range).map((i) => dense[i]), 0) || 1;
}

/** Outline of the bars inside a range; heights by square root, so that thin tails stay visible. */
function outline(counts, range, width, height, most = highest(counts, range)) {
  const [low, high] = range;
  const dense = densities(counts);
  const x = (score) => ((Math.min(Math.max(score, low), high) - low) / (high - low)) * width;
  let path = "";
  for (const i of visible(counts, range)) {
    if (!dense[i]) continue;
    const top = height - Math.sqrt(dense[i] / most) * height;
    path += `M${x(counts.edges[i]).toFixed(2)} ${height}V${top.toFixed(2)}H${x(counts.edges[i + 1]).toFixed(2)}V${height}`;
  }
  return path;
}

/**
 * Draw a histogram whose part above a movable cut is filled.
 * Returns the element and `move(score)`, which changes one attribute of a clip and one of a line.
 */
export function drawHistogram(counts, { range, height = 96, width = 600, cut = null, label = "", ticks = true }) {
  const [low, high] = range;
  const x = (score) => ((Math.min(Math.max(score, low), high) - low) / (high - low)) * width;
  const svg = made("svg", { class: ticks ? "histogram" : "histogram mini", viewBox: `0 0 ${width} ${height}`, width: "100%", height, preserveAspectRatio: "none", role: "img", "aria-label": label });
  const id = `clip-${(lastId += 1)}`;
  const path = outline(counts, range, width, height);
  const clip = made("rect", { x: x(cut ?? low), y: 0, width, height });
  const clipPath = made("clipPath", { id });
  clipPath.append(clip);
  svg.append(clipPath, made("path", { class: "dropped", d: path }), made("path", { class: "kept", d: path, "clip-path": `url(#${id})` }));
  svg.append(made("line", { class: "floor", x1: 0, x2: width, y1: height, y2: height }));
  if (cut !== null) svg.append(made("line", { class: "job-cut", x1: x(cut), x2: x(cut), y1: 0, y2: height }));
  const line = made("line", { class: "cut", x1: x(cut ?? low), x2: x(cut ?? low), y1: 0, y2: height });
  if (cut !== null) svg.append(line);
  const figure = document.createElement("div");
  figure.className = "chart";
  figure.append(svg);
  if (ticks) figure.append(drawTicks(low, high));
  const move = (score) => {
    clip.setAttribute("x", x(score));
    line.setAttribute("x1", x(score));
    line.setAttribute("x2", x(score));
  };
  return { element: figure, svg, move };
}

/** Draw counts with a filled part of each bar: kept tokens among all. */
export function drawParts(counts, part, { range, height = 72, width = 600, label = "" }) {
  const svg = made("svg", { class: "histogram", viewBox: `0 0 ${width} ${height}`, width: "100%", height, preserveAspectRatio: "none", role: "img", "aria-label": label });
  const most = highest(counts, range);
  svg.append(made("path", { class: "dropped", d: outline(counts, range, width, height, most) }));
  svg.append(made("path", { class: "kept", d: outline(new Counts(counts.edges, part), range, width, height, most) }));
  svg.append(made("line", { class: "floor", x1: 0, x2: width, y1: height, y2: height }));
  const figure = document.createElement("div");
  figure.className = "chart";
  figure.append(svg, drawTicks(...range));
  return figure;
}

/** Round numbers under the axis, in a graphic of their own so that letters are not stretched. */
function drawTicks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const svg = made("svg", { class: "ticks", width: "100%", height: 18, "aria-hidden": "true" });
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) {
    const at = (tick - low) / (high - low);
    if (at < 0.03 || at > 0.97) continue;
    const value = Math.abs(tick) < step / 2 ? 0 : tick;
    svg.append(made("text", { x: `${(100 * at).toFixed(2)}%`, y: 13, "text-anchor": "middle" }, value.toLocaleString("en", { maximumFractionDigits: 2 }).replace("-", "−")));
  }
  return svg;
}

/**
 * Rows of sources: name, small histogram, tokens, kept share. Returns `show(score)`, which moves all cuts;
 * null: back to each source's own cut and the share that the job kept.
 */
export function drawSources(table, sources, { range, start }) {
  const cell = (row, tag, className, text) => {
    const node = document.createElement(tag);
    node.className = className;
    if (tag === "th") node.scope = row.parentElement?.tagName === "TBODY" ? "row" : "col";
    if (text !== undefined) node.textContent = text;
    row.append(node);
    return node;
  };
  const head = document.createElement("thead");
  const titles = head.insertRow();
  for (const [text, css] of [["Source", ""], ["Scores", "wide"], ["Tokens", "right"], ["Kept", "right"]]) cell(titles, "th", css, text);
  const body = document.createElement("tbody");
  const rows = sources.map(({ name, counts, kept, tokens, cut }) => {
    const row = body.insertRow();
    const title = document.createElement("bdi");
    title.textContent = name || "(no source)";
    const label = cell(row, "th", "");
    label.title = name;
    label.append(title);
    const own = cut ?? start;
    const chart = drawHistogram(counts, { range, height: 22, width: 200, cut: own, ticks: false, label: `Scores of ${name || "no source"}` });
    cell(row, "td", "wide").append(chart.element);
    cell(row, "td", "right", compact(tokens));
    return { counts, chart, kept, own, output: cell(row, "td", "right number") };
  });
  table.replaceChildren(head, body);
  return (score) => {
    for (const { counts, chart, kept, own, output } of rows) {
      chart.move(score ?? own);
      const value = score === null ? kept : counts.shareAbove(score);
      output.textContent = value == null || Number.isNaN(value) ? "–" : `${(100 * value).toFixed(1)}%`;
    }
  };
}

const compact = (value) => new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
